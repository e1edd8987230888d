"""Wait for batches in the triggerer."""
