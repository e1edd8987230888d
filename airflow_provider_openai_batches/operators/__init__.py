"""Operators: upload, submit, cancel, download."""
