"""TaskFlow: a function whose rows go through batches."""
