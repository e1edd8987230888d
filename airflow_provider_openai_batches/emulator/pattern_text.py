"""Make up a text that matches a regular expression, for schemas with ``pattern``."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from typing import Any

_ATTEMPTS = 50
_LONGEST_REPEAT = 8
_CLASSES = {
    "CATEGORY_DIGIT": string.digits,
    "CATEGORY_WORD": string.ascii_letters + string.digits + "_",
    "CATEGORY_SPACE": " ",
}
_PRINTABLE = string.ascii_letters + string.digits + " -_.,:;@/+*#"


def matching_text(pattern: str, rng: random.Random, least: int = 0, most: float = float("inf")) -> str | None:
    """Make up a text that ``pattern`` is found in, of ``least`` to ``most`` characters.

    :return: the text; None if no attempt matched, as with back references or elaborate look-arounds
    """
    # The parser is not public, but it is the one thing that reads patterns exactly as ``re`` does. Every text is
    # checked with ``re`` itself, so a change there can make us give up, not lie.
    from re import _parser  # type: ignore[attr-defined]

    try:
        compiled = re.compile(pattern)
        tree = _parser.parse(pattern)
    except re.error:
        return None
    for attempt in range(_ATTEMPTS):
        text = _sequence(tree, rng, attempt % (_LONGEST_REPEAT + 1))
        if least > len(text) and not compiled.search(text + "x"):
            continue
        text += "x" * (least - len(text))
        if len(text) <= most and compiled.search(text):
            return text
    return None


def _sequence(tree: Any, rng: random.Random, stretch: int) -> str:
    return "".join(_piece(str(op), argument, rng, stretch) for op, argument in tree)


def _piece(op: str, argument: Any, rng: random.Random, stretch: int) -> str:
    match op:
        case "LITERAL":
            return chr(argument)
        case "ANY":
            return rng.choice(string.ascii_letters)
        case "NOT_LITERAL":
            return rng.choice([char for char in _PRINTABLE if char != chr(argument)])
        case "IN":
            return _one_of(argument, rng)
        case "BRANCH":
            return _sequence(rng.choice(argument[1]), rng, stretch)
        case "SUBPATTERN":
            return _sequence(argument[-1], rng, stretch)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, inner = argument
            count = rng.randint(low, max(low, min(high, low + stretch)))
            return "".join(_sequence(inner, rng, stretch) for _ in range(count))
    return ""  # anchors and look-arounds add no text; the check with re decides


def _one_of(items: Sequence[Any], rng: random.Random) -> str:
    chosen = ""
    negated = False
    for op, argument in items:
        match str(op):
            case "NEGATE":
                negated = True
            case "LITERAL":
                chosen += chr(argument)
            case "RANGE":
                low, high = argument
                chosen += "".join(map(chr, range(low, min(high, low + 255) + 1)))
            case "CATEGORY":
                chosen += _CLASSES.get(str(argument), "") or _complement(str(argument))
    if negated:
        chosen = "".join(char for char in _PRINTABLE if char not in chosen)
    return rng.choice(chosen) if chosen else ""


def _complement(category: str) -> str:
    without = _CLASSES.get(category.replace("_NOT_", "_"), "")
    return "".join(char for char in _PRINTABLE if char not in without)
