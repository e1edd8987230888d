"""Standard streams as a shell may hand them over: closed, full, without a reader, or of an old encoding."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Let this process have all three streams, and let no letter be one that they cannot read or write.

    A standard output that is closed (``>&-``) is like one whose reader has gone: whatever is written there is lost, and
    that must not look like success. Nobody minds about the other two.
    """
    # The lowest number first: what is opened next would else be taken for a standard stream.
    if sys.stdin is None:
        sys.stdin = open(_at(0, os.open(os.devnull, os.O_RDONLY)), encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        reading, writing = os.pipe()
        os.close(reading)
        sys.stdout = open(_at(1, writing), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(_at(2, os.open(os.devnull, os.O_WRONLY)), "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _at(number: int, descriptor: int) -> int:
    """Move an open file to the number of a standard stream, if that is free."""
    if descriptor == number:
        return descriptor
    try:
        os.fstat(number)
    except OSError:
        os.dup2(descriptor, number)
        os.close(descriptor)
        return number
    return descriptor


def abandon() -> None:
    """Drop what cannot be written any more: else the interpreter tries again at its end, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
