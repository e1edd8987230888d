"""Operators that take a job's results to where they are used."""
