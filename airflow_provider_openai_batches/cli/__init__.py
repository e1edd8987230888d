"""``openai-batches``: the project's batches and files on the command line, with or without an Airflow connection.

Exit codes: 0 all is well, 1 an error (one line on stderr says what happened and what to do), 2 wrong usage, 130 ended
by Ctrl-C, 141 nobody reads the output any more, or it is closed.
"""
