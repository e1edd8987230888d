"""Wait for a batch in its own task."""
