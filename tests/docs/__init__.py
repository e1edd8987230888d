"""The documentation does what it says: its code runs, its links lead somewhere, every error has its entry."""
