"""A job: many rows, many batches, one result. No operator and no DAG here."""
