"""Jobs and waiting triggers in one process for an hour: nothing may grow, leak, get lost or be bought twice."""
