"""Make up a value that fits a JSON schema: what a model with structured outputs would be held to."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_openai_batches.emulator.pattern_text import matching_text

_SIMPLE_DEPTH = 4
"""Below this depth optional parts are left out and the plainest alternative is taken, so recursion ends."""
_MAX_DEPTH = 60
_MAX_SIZE = 100_000
"""Values and characters in all: about what a model could say at most."""
_UNIQUE_ATTEMPTS = 200

_FORMATS = {
    "date-time": "2026-01-{day:02}T12:00:00Z",
    "date": "2026-01-{day:02}",
    "time": "12:{day:02}:00Z",
    "duration": "P{day}D",
    "email": "emulated{day}@example.com",
    "hostname": "emulated{day}.example.com",
    "ipv4": "192.0.2.{day}",
    "ipv6": "2001:db8::{day}",
    "uuid": "00000000-0000-4000-8000-0000000000{day:02}",
    "uri": "https://example.com/{day}",
}


class SchemaError(ValueError):
    """The schema is malformed, or nothing this simple can satisfy it."""


def instance_of(schema: Any, rng: random.Random) -> Any:
    """Make up a value for a schema; the same ``rng`` state gives the same value.

    Understands what OpenAI's structured outputs accept, and a little more: ``$ref`` within the schema, ``enum``,
    ``const``, ``anyOf``/``oneOf``/``allOf``, every type, and the bounds of strings, numbers, arrays and objects.

    :param schema: a JSON schema, decoded
    :raises SchemaError: it is malformed, asks for too much, or uses a combination not understood
    """
    try:
        return _Maker(schema, rng).value(schema, "value", 0)
    except SchemaError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise SchemaError(f"malformed: {error}") from error


class _Maker:
    def __init__(self, root: Any, rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._room = _MAX_SIZE

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise SchemaError(f"the schema asks for more than {_MAX_SIZE:,} values and characters")

    def value(self, schema: Any, name: str, depth: int) -> Any:
        self._take(1)
        if depth > _MAX_DEPTH:
            raise SchemaError("the schema recurses without an end")
        if schema is True:
            return self._text({}, name)
        if not isinstance(schema, Mapping):
            raise SchemaError(f"not a schema: {schema!r}")
        schema = self._flat(schema, 0)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(_non_empty(schema, "enum"))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                siblings = {key: part for key, part in schema.items() if key != keyword}
                branch = self._branch(_non_empty(schema, keyword), depth)
                return self.value(_merge(siblings, branch) if siblings else branch, name, depth + 1)
        return self._typed(schema, name, depth)

    def _typed(self, schema: Mapping[str, Any], name: str, depth: int) -> Any:
        kind = schema.get("type") or _implied_type(schema)
        if isinstance(kind, list):
            kind = kind[0] if depth < _SIMPLE_DEPTH or "null" not in kind else "null"
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "string":
                return self._text(schema, name)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
        raise SchemaError(f"unknown type {kind!r}")

    def _flat(self, schema: Mapping[str, Any], hops: int) -> Mapping[str, Any]:
        """Resolve ``$ref`` and ``allOf`` at the top of a schema."""
        if hops > _MAX_DEPTH:
            raise SchemaError("a $ref refers to itself")
        if "$ref" in schema:
            siblings = {key: part for key, part in schema.items() if key != "$ref"}
            return self._flat(_merge(self._resolve(schema["$ref"]), siblings), hops + 1)
        if "allOf" in schema:
            merged: Mapping[str, Any] = {key: part for key, part in schema.items() if key != "allOf"}
            for part in _non_empty(schema, "allOf"):
                merged = _merge(merged, self._flat(part, hops + 1))
            return self._flat(merged, hops + 1)
        return schema

    def _resolve(self, ref: Any) -> Mapping[str, Any]:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise SchemaError(f"only references within the schema are known, not {ref!r}")
        target = self._root
        for step in ref[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or step not in target:
                raise SchemaError(f"nothing at {ref!r}")
            target = target[step]
        if not isinstance(target, Mapping):
            raise SchemaError(f"no schema at {ref!r}")
        return target

    def _branch(self, branches: Sequence[Any], depth: int) -> Any:
        flat = [self._flat(branch, 0) if isinstance(branch, Mapping) else branch for branch in branches]
        if depth >= _SIMPLE_DEPTH:
            return min(flat, key=_complexity)
        return self._rng.choice(flat)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = list(schema.get("required") or ())
        wanted = [key for key in properties if key in required or depth < _SIMPLE_DEPTH]
        wanted += [key for key in required if key not in properties]
        missing = schema.get("minProperties", 0) - len(wanted)
        wanted += [key for key in properties if key not in wanted][: max(0, missing)]
        if "maxProperties" in schema:
            spare = [key for key in wanted if key not in required]
            while len(wanted) > schema["maxProperties"] and spare:
                wanted.remove(spare.pop())
        extra = schema.get("additionalProperties", True)
        made = {key: self.value(properties.get(key, extra), key, depth + 1) for key in wanted}
        while len(made) < schema.get("minProperties", 0):
            if extra is False:
                raise SchemaError("minProperties asks for more properties than are allowed")
            made[f"key_{len(made)}"] = self.value(extra, f"key_{len(made)}", depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        prefix = schema.get("prefixItems") or []
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", math.inf)
        if depth >= _SIMPLE_DEPTH:
            count = least
        else:
            count = int(min(most, max(least, len(prefix), self._rng.randint(1, 3))))
        items = schema.get("items", True)
        if items is False:
            count = min(count, len(prefix))
        made: list[Any] = []
        seen: set[str] = set()
        for _ in range(max(count, 1) * _UNIQUE_ATTEMPTS):
            if len(made) == count:
                break
            part = prefix[len(made)] if len(made) < len(prefix) else items
            value = self.value(part, f"{name} {len(made) + 1}", depth + 1)
            text = json.dumps(value, sort_keys=True)
            if schema.get("uniqueItems") and text in seen:
                continue
            seen.add(text)
            made.append(value)
        if len(made) < least:
            raise SchemaError("cannot make up enough array items")
        return made

    def _text(self, schema: Mapping[str, Any], name: str) -> str:
        least: int = schema.get("minLength", 0)
        self._take(least)
        most: float = schema.get("maxLength", math.inf)
        if "pattern" in schema:
            matching = matching_text(schema["pattern"], self._rng, least, most)
            if matching is None:
                raise SchemaError(f"cannot make up a text for pattern {schema['pattern']!r}")
            return matching
        if schema.get("format") in _FORMATS:
            return str(_FORMATS[schema["format"]].format(day=self._rng.randint(10, 28)))
        text = f"emulated {name} {self._rng.randrange(16**4):04x}"
        text += "." * max(0, least - len(text))
        return text[: int(min(most, len(text)))]

    def _integer(self, schema: Mapping[str, Any]) -> int:
        low, high = _bounds(schema)
        step = schema.get("multipleOf", 1)
        if step != int(step):
            raise SchemaError("an integer's multipleOf must be whole")
        first, last = math.ceil(low / step), math.floor(high / step)
        first += first * step == low and schema.get("exclusiveMinimum") == low
        last -= last * step == high and schema.get("exclusiveMaximum") == high
        if first > last:
            raise SchemaError("no integer lies within the bounds")
        return int(self._rng.randint(first, last) * step)

    def _number(self, schema: Mapping[str, Any]) -> float:
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            if step == int(step):
                return self._integer(schema)
            raise SchemaError("a fractional multipleOf is not understood")
        low, high = _bounds(schema)
        if low > high:
            raise SchemaError("no number lies within the bounds")
        number = low + (high - low) * (0.05 + 0.9 * self._rng.random())
        rounded = round(number, 3)
        return rounded if low < rounded < high else number


def _bounds(schema: Mapping[str, Any]) -> tuple[float, float]:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    span = max(100, 4 * abs(schema.get("multipleOf", 1)))
    if low == -math.inf:
        low = 0 if high >= span else high - span
    if high == math.inf:
        high = low + span
    return low, high


def _implied_type(schema: Mapping[str, Any]) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _non_empty(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    parts = schema[keyword]
    if not isinstance(parts, list) or not parts:
        raise SchemaError(f"{keyword} must be a non-empty array")
    return parts


def _merge(one: Any, other: Any) -> dict[str, Any]:
    """Join two schemas that both apply; where they disagree the second wins."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise SchemaError("only object schemas can be combined")
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *(key for key in other["required"] if key not in one["required"])]
    return merged


def _complexity(schema: Any) -> int:
    """How likely a schema is to lead further down: scalars end it, references may not."""
    if not isinstance(schema, Mapping):
        return 0
    if schema.get("type") == "null" or "const" in schema or "enum" in schema:
        return 0
    if "anyOf" in schema or "oneOf" in schema:
        return 3
    kind = schema.get("type") or _implied_type(schema)
    if kind == "object":
        return 3 + len(schema.get("required") or ())
    if kind == "array":
        return 2 + 10 * bool(schema.get("minItems"))
    return 1
