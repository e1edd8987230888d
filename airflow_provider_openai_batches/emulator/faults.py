"""Scripted faults: a JSON list of rules, tried in order. The first rule that matches and is due takes effect.

A rule is ``{"on": {...}, "do": {...}, "skip": 0, "times": 1}``: it lets ``skip`` matches pass, acts on the next
``times`` (null: on all), and is spent. Unknown names are refused. In globs ``*`` stays within one path segment and
``**`` does not; ``/v1`` may be left out of paths.

HTTP calls: ``"on": {"method": "POST", "path": "/v1/batches"}`` (both default to anything)

=============================  =========================================================================
``do``                         effect
=============================  =========================================================================
``status, headers, body``      answer so, without applying the request; a text body is sent as HTML
``drop: "before" | "after"``   reset the connection before / after the request is applied; no answer
``delay: seconds``             wait (real time) before anything else; combines with all others
``truncate: k``                full Content-Length, but the connection closes after k bytes
``gzip: true``                 compress the answer
``redirect: url``              302 to url + the request's path and query
``patch: {...}``               JSON merge patch on the answer; on a list, on each item of its data
``set: {...}``                 members put into the answer as they are, null too; lists as with patch
``fill: {...}``                members put into the answer where it has null or nothing; lists as with patch
``azure: true``                show statuses with a capital and times as ISO 8601 texts, as Azure has done
``ranges: true``               file content: advertise and serve Range, ETag and If-Range
``ignore_after: true``         lists: act as if no ``after`` had been sent
=============================  =========================================================================

Batches: ``"on": {"batch": {"endpoint": ..., "model": ..., "metadata": {...}}}`` (globs; all that is given must match),
decided once per batch, when its lines have been validated

=================================  =====================================================================
``do``                             effect
=================================  =====================================================================
``outcome: "failed"``              validation fails with ``errors`` (a list; without it ``errors`` is null) after
                                   ``seconds`` of virtual time (3)
``outcome: "token_limit_exceeded"``  the queue is full, as a failed batch
``outcome: "file_not_found"``      "Cannot find file", as a failed batch
``outcome: "stuck"``               stays in ``status`` for ``seconds`` of virtual time (null: for ever)
``outcome: "skip_states"``         shows ``validating`` until it has ended
``outcome: "expire"``              expires when the share ``finished`` (0 to 1) of its requests is done
``outcome: "all_failed"``          every request fails with ``status``/``code``/``message`` (500)
``outcome: "empty_error_file"``    has an error file of zero bytes if no request failed
=================================  =====================================================================

Rows: ``"on": {"custom_id": "row-1*"}``, decided once per request, when its batch starts; ``skip`` and ``times`` count
requests

=============================  =========================================================================
``do``                         the request's line
=============================  =========================================================================
``outcome: "error"``           an error with ``status`` (400), ``code``, ``message``
``outcome: "server_error"``    the same with status 500
``outcome: "timeout"``         never answered: ``request_timeout``
``outcome: "missing"``         in neither file
``outcome: "duplicate"``       there twice
``outcome: "unknown"``         under a custom_id that nobody sent
``outcome: "broken_line"``     cut in the middle
``outcome: "length"``          200, cut by the token cap
``outcome: "refusal"``         200, the model refuses
``outcome: "invalid_output"``  200, an answer that does not follow the schema
``outcome: "answer"``          200, with ``text`` as the model's words
=============================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

BatchOutcomeName = Literal[
    "failed",
    "token_limit_exceeded",
    "file_not_found",
    "stuck",
    "skip_states",
    "expire",
    "all_failed",
    "empty_error_file",
]
RowOutcomeName = Literal[
    "error",
    "server_error",
    "timeout",
    "missing",
    "duplicate",
    "unknown",
    "broken_line",
    "length",
    "refusal",
    "invalid_output",
    "answer",
]
FAILING_ROW_OUTCOMES = frozenset({"error", "server_error", "timeout"})
"""Those that count as a failed request."""
_STUCK_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")


class FaultError(ValueError):
    """A fault rule that cannot be understood; the message names the rule and the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class OnCall:
    """Which HTTP calls: globs."""

    method: str = "*"
    path: str = "**"


@dataclasses.dataclass(frozen=True, slots=True)
class OnBatch:
    """Which batches: globs; None matches any."""

    endpoint: str | None = None
    model: str | None = None
    metadata: dict[str, str] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OnRow:
    """Which requests: a glob."""

    custom_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallEffect:
    """What happens to an HTTP call; see the module's table."""

    status: int | None = None
    headers: dict[str, str] | None = None
    body: Any = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0.0
    truncate: int | None = None
    gzip: bool = False
    redirect: str | None = None
    patch: dict[str, Any] | None = None
    set: dict[str, Any] | None = None
    fill: dict[str, Any] | None = None
    azure: bool = False
    ranges: bool = False
    ignore_after: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What becomes of a batch; see the module's table."""

    outcome: BatchOutcomeName
    errors: list[dict[str, Any]] | None = None
    status: str | int | None = None
    seconds: float | None = None
    finished: float = 0.5
    code: str | None = None
    message: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RowOutcome:
    """What becomes of a request; see the module's table."""

    outcome: RowOutcomeName
    status: int | None = None
    code: str | None = None
    message: str | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One parsed rule."""

    on: OnCall | OnBatch | OnRow
    do: CallEffect | BatchOutcome | RowOutcome
    skip: int = 0
    times: int | None = 1


_Struct = TypeVar("_Struct", OnCall, OnBatch, OnRow, CallEffect, BatchOutcome, RowOutcome)

_TYPES: dict[str, tuple[type, ...]] = {
    "body": (object,),
    "delay": (int, float),
    "seconds": (int, float),
    "finished": (int, float),
    "truncate": (int,),
    "gzip": (bool,),
    "ranges": (bool,),
    "ignore_after": (bool,),
    "headers": (dict,),
    "patch": (dict,),
    "set": (dict,),
    "fill": (dict,),
    "azure": (bool,),
    "metadata": (dict,),
    "errors": (list,),
    "status": (int, str),
}
"""JSON types of the fields; those not listed are texts. Null is allowed wherever the default is null."""


def parse_rule(raw: Any, where: str = "fault rule") -> Rule:
    """Read a decoded rule.

    :param raw: the rule, as in the module's tables
    :param where: how to name the rule in errors
    :raises FaultError: it is not a rule
    """
    if not isinstance(raw, Mapping):
        raise FaultError(f"{where}: expected an object, got {raw!r}")
    unknown = raw.keys() - {"on", "do", "skip", "times"}
    if unknown:
        raise FaultError(f"{where}: unknown member {sorted(unknown)[0]!r}; a rule has on, do, skip and times")
    on, do = raw.get("on", {}), raw.get("do")
    if not isinstance(on, Mapping) or not isinstance(do, Mapping) or not do:
        raise FaultError(f"{where}: 'on' and 'do' must be objects, and 'do' must say something")
    skip, times = raw.get("skip", 0), raw.get("times", 1)
    if not _is_count(skip):
        raise FaultError(f"{where}: skip must be a whole number, not {skip!r}")
    if times is not None and not _is_count(times):
        raise FaultError(f"{where}: times must be a whole number or null, not {times!r}")
    if "batch" in on:
        if len(on) > 1:
            raise FaultError(f"{where}: on.batch stands alone")
        match = _build(OnBatch, on["batch"], f"{where}: on.batch")
        return Rule(match, _outcome(BatchOutcome, BatchOutcomeName, do, where), skip, times)
    if "custom_id" in on:
        row = _build(OnRow, on, f"{where}: on")
        return Rule(row, _outcome(RowOutcome, RowOutcomeName, do, where), skip, times)
    return Rule(_build(OnCall, on, f"{where}: on"), _call_effect(do, where), skip, times)


def parse_rules(raw: Any) -> list[Rule]:
    """Read a decoded list of rules.

    :raises FaultError: one of them is not a rule; the message counts from 1
    """
    if not isinstance(raw, list):
        raise FaultError(f"faults: expected a list of rules, got {type(raw).__name__}")
    return [parse_rule(rule, f"fault rule {number}") for number, rule in enumerate(raw, 1)]


class Faults:
    """The rules in force, and how often each has matched. Used from the event loop's thread only."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._counted: list[_Counted] = [_Counted(rule) for rule in rules]

    def add(self, rules: Iterable[Rule]) -> None:
        """Put rules behind those in force."""
        self._counted += [_Counted(rule) for rule in rules]

    def clear(self) -> None:
        """Forget all rules. Batches and requests whose fate is decided keep it."""
        self._counted.clear()

    def for_call(self, method: str, path: str) -> CallEffect | None:
        """The effect on this HTTP call, if any."""
        for counted in self._counted:
            match counted.rule:
                case Rule(on=OnCall() as on, do=CallEffect() as effect):
                    if _matches_call(on, method, path) and counted.due():
                        return effect
        return None

    def for_batch(self, endpoint: str, model: str | None, metadata: Mapping[str, str] | None) -> BatchOutcome | None:
        """The fate of this batch, if one is scripted."""
        for counted in self._counted:
            match counted.rule:
                case Rule(on=OnBatch() as on, do=BatchOutcome() as outcome):
                    if _matches_batch(on, endpoint, model, metadata or {}) and counted.due():
                        return outcome
        return None

    @property
    def about_rows(self) -> bool:
        """Whether any rule could concern a request, so callers can spare themselves the look."""
        return any(isinstance(counted.rule.on, OnRow) and not counted.spent for counted in self._counted)

    def for_row(self, custom_id: str) -> RowOutcome | None:
        """The fate of this request, if one is scripted."""
        for counted in self._counted:
            match counted.rule:
                case Rule(on=OnRow() as on, do=RowOutcome() as outcome):
                    if _glob(on.custom_id, custom_id) and counted.due():
                        return outcome
        return None


class _Counted:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._seen = 0

    @property
    def spent(self) -> bool:
        return self.rule.times is not None and self._seen >= self.rule.skip + self.rule.times

    def due(self) -> bool:
        """Count a match, and say whether the rule acts on it."""
        if self.spent:
            return False
        self._seen += 1
        return self._seen > self.rule.skip


def _build(struct: type[_Struct], raw: Any, where: str) -> _Struct:
    if not isinstance(raw, Mapping):
        raise FaultError(f"{where}: expected an object, got {raw!r}")
    known = {field.name: field for field in dataclasses.fields(struct)}
    for name, value in raw.items():
        if name not in known:
            raise FaultError(f"{where}: unknown member {name!r}; known: {', '.join(known)}")
        allowed = _TYPES.get(name, (str,))
        is_flag = isinstance(value, bool) and bool not in allowed and object not in allowed
        if value is None and known[name].default is None:
            continue
        if is_flag or not isinstance(value, allowed):
            raise FaultError(
                f"{where}.{name}: {value!r} is not of type {' or '.join(kind.__name__ for kind in allowed)}"
            )
    missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and raw.get(name) is None]
    if missing:
        raise FaultError(f"{where}: {missing[0]!r} is missing")
    return struct(**raw)


def _call_effect(raw: Mapping[str, Any], where: str) -> CallEffect:
    effect = _build(CallEffect, raw, f"{where}: do")
    if effect.drop not in (None, "before", "after"):
        raise FaultError(f'{where}: do.drop: must be "before" or "after", not {effect.drop!r}')
    if effect.status is not None and not (isinstance(effect.status, int) and 200 <= effect.status <= 599):
        raise FaultError(f"{where}: do.status: {effect.status!r} is no HTTP status")
    if effect.status is None and (effect.body is not None or effect.headers is not None):
        raise FaultError(f"{where}: do.body and do.headers need do.status")
    return effect


_Outcome = TypeVar("_Outcome", BatchOutcome, RowOutcome)


def _outcome(struct: type[_Outcome], names: Any, raw: Mapping[str, Any], where: str) -> _Outcome:
    outcome = _build(struct, raw, f"{where}: do")
    known = get_args(names)
    if outcome.outcome not in known:
        raise FaultError(f"{where}: do.outcome: {outcome.outcome!r} is not one of {', '.join(known)}")
    if outcome.outcome == "stuck" and outcome.status not in _STUCK_STATUSES:
        raise FaultError(f"{where}: do.status: a batch can be stuck in {', '.join(_STUCK_STATUSES)}")
    if isinstance(outcome, RowOutcome) and (outcome.outcome == "answer") != (outcome.text is not None):
        raise FaultError(f"{where}: do.text: outcome 'answer' needs it, and no other has one")
    if outcome.outcome != "stuck" and isinstance(outcome.status, str):
        raise FaultError(f"{where}: do.status: {outcome.status!r} is no HTTP status")
    return outcome


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _matches_call(on: OnCall, method: str, path: str) -> bool:
    if not _glob(on.method.upper(), method):
        return False
    return _glob(on.path, path, "[^/]*") or _glob(on.path, path.removeprefix("/v1"), "[^/]*")


def _matches_batch(on: OnBatch, endpoint: str, model: str | None, metadata: Mapping[str, str]) -> bool:
    wanted = [(on.endpoint, endpoint), (on.model, model or "")]
    wanted += [(glob, metadata.get(key, "")) for key, glob in (on.metadata or {}).items()]
    return all(glob is None or _glob(glob, value) for glob, value in wanted)


def _glob(glob: str, text: str, star: str = ".*") -> bool:
    return _compiled(glob, star).fullmatch(text) is not None


@functools.cache
def _compiled(glob: str, star: str) -> re.Pattern[str]:
    parts = (re.escape(part).replace(r"\*", star) for part in glob.split("**"))
    return re.compile(".*".join(parts), re.DOTALL)
