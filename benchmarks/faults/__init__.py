"""What each operation makes of each fault of the service, ours and the rivals': ``python -m benchmarks.faults``."""
