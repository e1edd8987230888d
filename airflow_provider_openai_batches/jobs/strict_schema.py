"""The part of JSON schema that OpenAI's strict mode takes: https://platform.openai.com/docs/guides/structured-outputs.

Limits and rules are those of its section "Supported schemas"; rules the service enforces without documenting them
(``oneOf``, ``default``, keywords beside ``$ref``, lookaround in patterns) are marked as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_openai_batches.api.errors import InvalidInputError

MAX_PROPERTIES = 5_000
MAX_LEVELS = 10
MAX_NAME_CHARS = 120_000
"""All property names, definition names, enum values and const values together."""
MAX_ENUM_VALUES = 1_000
MAX_LONG_ENUM_CHARS = 15_000
"""Of one enum's texts, once it has more than 250 values."""
_LONG_ENUM_VALUES = 250

_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_KEYWORDS = frozenset(
    {
        *("type", "enum", "const", "anyOf", "$ref", "$defs", "definitions", "$schema", "title", "description"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
        *("pattern", "format", "minLength", "maxLength"),
        *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
_REMEDIES = {
    "oneOf": "Use anyOf.",
    "allOf": "Write its parts as one schema.",
    "default": "Take it out: the model always gives every field.",
    "prefixItems": "Tuples have no strict form. Use an object with a field for each part.",
    "patternProperties": "Use a list of objects with a key and a value.",
    "propertyNames": "Use a list of objects with a key and a value.",
}
# (?= (?! (?<= (?<! that are not escaped; undocumented, refused with "regex lookaround is not supported".
_LOOKAROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")

# What a Pydantic model says to others than the model that answers.
_SILENT = frozenset({"default", "examples", "discriminator", "deprecated", "readOnly", "writeOnly"})
# What the model that answers cannot be held to, and Pydantic holds it to afterwards. minLength and maxLength are in the
# guide only as what fine-tuned models lack.
_UNHELD = frozenset({"uniqueItems", "minLength", "maxLength", "contentMediaType", "contentEncoding", "contentSchema"})


def strict_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a Pydantic model's JSON schema into strict form, as far as that leaves its meaning alone.

    Every field becomes required (one with a default is given all the same), objects take no other fields, ``oneOf``
    becomes ``anyOf``. Constraints strict mode does not know move into the description: the model that answers may still
    heed them, and the Pydantic model checks them. What has no strict form stays, for :func:`check_strict` to refuse.
    """
    strict: dict[str, Any] = _strict(schema)
    name = _definition_name(strict.get("$ref"))
    if name is not None:
        # A model that refers to itself is a reference at its root, where strict mode wants the object.
        strict = {**strict["$defs"][name], **{key: part for key, part in strict.items() if key != "$ref"}}
    return strict


def _strict(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    node = {key: part for key, part in schema.items() if key not in _SILENT}
    if "oneOf" in node:
        node["anyOf"] = node.pop("oneOf")
    if "$ref" in node and node.keys() - {"$ref", "$defs"}:
        # Nothing may stand beside $ref (undocumented), but anyOf may have a description.
        node["anyOf"] = [{"$ref": node.pop("$ref")}]
    for holder in ("properties", "$defs"):
        if holder in node:
            node[holder] = {name: _strict(part) for name, part in node[holder].items()}
    if "anyOf" in node:
        node["anyOf"] = [_strict(part) for part in node["anyOf"]]
    if "items" in node:
        node["items"] = _strict(node["items"])
    if node.get("type") == "object":
        node.setdefault("properties", {})
        node.setdefault("additionalProperties", False)
        node["required"] = list(node["properties"])
    return _with_notes(node)


def _with_notes(node: dict[str, Any]) -> dict[str, Any]:
    unheld = {key for key in node if key in _UNHELD}
    if node.get("format", "date") not in _FORMATS:
        unheld.add("format")
    if _LOOKAROUND.search(node.get("pattern", "")):
        unheld.add("pattern")
    if not unheld:
        return node
    notes = ", ".join(f"{key}: {node[key]}" for key in sorted(unheld))
    kept = {key: part for key, part in node.items() if key not in unheld}
    return kept | {"description": f"{kept['description']} ({notes})" if kept.get("description") else notes}


def check_strict(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that strict mode would refuse.

    :param schema: well-formed: each keyword's value has the type JSON schema gives it
    :raises InvalidInputError: with the place in the schema, as a JSON path, and the remedy
    """
    if schema.get("type") != "object" or "anyOf" in schema:
        raise _refuse(
            "$", "the root must be one object, not a list, a union or a plain value. Give it a field that is."
        )
    sizes = _Sizes()
    for path, node in _nodes(schema, "$"):
        _check_node(node, path, schema)
        sizes.add(node, path)
    sizes.check()
    if (levels := _levels(schema, schema, {})) > MAX_LEVELS:
        raise _refuse("$", f"objects are nested {levels} levels deep; at most {MAX_LEVELS} are taken. Flatten it.")


def _refuse(path: str, message: str) -> InvalidInputError:
    return InvalidInputError("output_type", f"{path}: {message}")


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk all schemas within a schema; a parent comes before its parts, so it is checked before they are taken."""
    if not isinstance(node, Mapping):
        raise _refuse(path, f"expected a schema, got {node!r}.")
    yield path, node
    for holder in ("properties", "$defs", "definitions"):
        for name, part in node.get(holder, {}).items():
            yield from _nodes(part, f"{path}.{holder}.{name}")
    for position, part in enumerate(node.get("anyOf", ())):
        yield from _nodes(part, f"{path}.anyOf[{position}]")
    if "items" in node:
        yield from _nodes(node["items"], f"{path}.items")


def _check_node(node: Mapping[str, Any], path: str, root: Mapping[str, Any]) -> None:
    for keyword in node:
        if keyword not in _KEYWORDS:
            raise _refuse(path, f"{keyword!r} is not taken by strict mode. {_REMEDIES.get(keyword, 'Take it out.')}")
    if "$ref" in node:
        _check_reference(node, path, root)
        return
    types = node.get("type", [])
    types = [types] if isinstance(types, str) else types
    if not types and not node.keys() & {"anyOf", "enum", "const"}:
        raise _refuse(path, "it says nothing about its type (Python's Any and object do that). Name a type.")
    if "object" in types:
        _check_object(node, path)
    if "array" in types and "items" not in node:
        raise _refuse(path, "the list does not say what its items are. Add 'items'.")
    if node.get("format", "date") not in _FORMATS:
        raise _refuse(
            path, f"format {node['format']!r} is not taken; only {', '.join(sorted(_FORMATS))} are. Take it out."
        )
    if _LOOKAROUND.search(node.get("pattern", "")):
        raise _refuse(path, "the pattern uses lookaround, which strict mode does not take. Write it without.")


def _check_object(node: Mapping[str, Any], path: str) -> None:
    if node.get("additionalProperties") is not False:
        raise _refuse(
            path,
            "it takes fields of any name, as dict[str, ...] and extra='allow' do. Name the fields and set "
            "additionalProperties to false, or use a list of objects with a key and a value.",
        )
    names = node.get("properties", {}).keys()
    required = node.get("required", [])
    if missing := [name for name in names if name not in required]:
        raise _refuse(
            path,
            f"{', '.join(missing)} must be in 'required': strict mode has no optional fields. "
            'Let what may be absent be null, e.g. "type": ["string", "null"].',
        )
    if unknown := [name for name in required if name not in names]:
        raise _refuse(path, f"'required' names {', '.join(map(str, unknown))}, which 'properties' does not have.")


def _check_reference(node: Mapping[str, Any], path: str, root: Mapping[str, Any]) -> None:
    if beside := node.keys() - {"$ref", "$defs", "definitions"}:
        raise _refuse(
            path, f"{', '.join(sorted(beside))} may not stand beside $ref. Put the $ref into an anyOf of one."
        )
    if _resolved(node["$ref"], root) is None:
        raise _refuse(path, f"$ref {node['$ref']!r} leads nowhere in this schema. Use '#' or '#/$defs/<name>'.")


def _definition_name(reference: Any) -> str | None:
    """Return what ``#/$defs/<name>`` names."""
    found = re.fullmatch(r"#/(?:\$defs|definitions)/([^/]+)", reference) if isinstance(reference, str) else None
    return found[1].replace("~1", "/").replace("~0", "~") if found else None


def _resolved(reference: Any, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if reference == "#":
        return root
    name = _definition_name(reference)
    found = root.get("$defs", {}).get(name) or root.get("definitions", {}).get(name)
    return found if isinstance(found, Mapping) else None


def _levels(node: Mapping[str, Any], root: Mapping[str, Any], known: dict[str, int]) -> int:
    """Count how deep objects are nested in objects. A schema that refers to itself counts once."""
    if "$ref" in node:
        reference = node["$ref"]
        if reference not in known:
            known[reference] = 0
            target = _resolved(reference, root)
            known[reference] = 0 if target is None or target is root else _levels(target, root, known)
        return known[reference]
    parts = [
        *node.get("properties", {}).values(),
        *node.get("anyOf", ()),
        *([node["items"]] if "items" in node else []),
    ]
    return ("properties" in node) + max((_levels(part, root, known) for part in parts), default=0)


class _Sizes:
    """What a schema's limits count, summed over its parts."""

    def __init__(self) -> None:
        self._properties = self._chars = self._enum_values = 0

    def add(self, node: Mapping[str, Any], path: str) -> None:
        names = node.get("properties", {})
        values = node.get("enum", [])
        if "enum" in node and not values:
            raise _refuse(path, "the enum has no values. Name at least one.")
        chars = sum(len(value) for value in values if isinstance(value, str))
        if len(values) > _LONG_ENUM_VALUES and chars > MAX_LONG_ENUM_CHARS:
            raise _refuse(
                path,
                f"an enum of more than {_LONG_ENUM_VALUES} values may have {MAX_LONG_ENUM_CHARS:,} characters, this "
                f"one has {chars:,}. Use shorter values.",
            )
        self._properties += len(names)
        self._enum_values += len(values)
        self._chars += chars + sum(map(len, names))
        self._chars += sum(len(name) for holder in ("$defs", "definitions") for name in node.get(holder, {}))
        self._chars += len(node["const"]) if isinstance(node.get("const"), str) else 0

    def check(self) -> None:
        for count, most, what in (
            (self._properties, MAX_PROPERTIES, "properties"),
            (self._enum_values, MAX_ENUM_VALUES, "enum values"),
            (self._chars, MAX_NAME_CHARS, "characters in names, enum and const values"),
        ):
            if count > most:
                raise _refuse("$", f"the schema has {count:,} {what}; at most {most:,} are taken. Make it smaller.")
