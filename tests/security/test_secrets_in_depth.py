"""Where a secret could still be told: local variables in a traceback, a key in the wrong field."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.api.settings import ClientSettings
from tests.api.connecting import API_KEY, closed_port, connect
from tests.api.scripted_server import Answer, ScriptedServer
from tests.api.test_secrets import CALLS, ECHOES, HEADER_SECRET, OWN, assert_silent


def with_locals(error: BaseException, *, skipped: int) -> str:
    """A traceback with the local variables of each frame, as error trackers and some log formatters show it.

    :param skipped: frames of the test's own, which know what they have given
    """
    frames = error.__traceback__
    for _ in range(skipped):
        assert frames is not None
        frames = frames.tb_next
    shown = traceback.TracebackException.from_exception(error.with_traceback(frames), capture_locals=True)
    assert any(frame.locals for frame in shown.stack), "there is something to be searched"
    return "".join(shown.format())


FAILING = [
    pytest.param(call, echo, id=f"{name}-{kind}")
    for (name, call), (kind, echo) in itertools.product(CALLS.items(), ECHOES.items())
    # What is not JSON is a content like any other to a download.
    if (name, kind) != ("download", "200 that is no JSON")
]


@pytest.mark.parametrize(("call", "echo"), FAILING)
def test_local_variables_of_a_failing_call_hold_no_secret(
    call: Callable[[BatchClient, Path], Any], echo: Answer, tmp_path: Path
) -> None:
    with ScriptedServer(endless=itertools.repeat(echo)) as server, connect(server.base_url, **OWN) as client:
        assert_silent(seen_of(call, client, tmp_path))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_local_variables_hold_none_where_nobody_answers(
    call: Callable[[BatchClient, Path], Any], tmp_path: Path
) -> None:
    with connect(closed_port(), **OWN) as client:
        seen = seen_of(call, client, tmp_path)
    assert_silent(seen)


def seen_of(call: Callable[[BatchClient, Path], Any], client: BatchClient, directory: Path) -> str:
    with pytest.raises(OpenAIBatchesError) as raised:
        call(client, directory)
    return with_locals(raised.value, skipped=1)  # this frame


@pytest.mark.parametrize(
    "settings",
    [
        {"headers": {"X-Key": f"{HEADER_SECRET}\x00"}},
        {"headers": {"X-Other": "fine", "X Key": HEADER_SECRET}},
        {"auth": "basic"},
        {"timeout_s": -1},
        {"base_url": "nowhere"},
    ],
    ids=repr,
)
def test_local_variables_of_refused_settings_hold_no_secret(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ClientSettings(**{"api_key": API_KEY, **settings})
    # A dataclass's own __init__ has all that it was given.
    assert_silent(with_locals(raised.value, skipped=2))


def test_a_key_in_the_field_of_the_host_is_not_shown() -> None:
    with pytest.raises(InvalidInputError, match="host") as raised:
        ClientSettings(api_key="x", base_url=API_KEY)
    assert API_KEY not in str(raised.value)


def test_airflow_shows_no_local_variables() -> None:
    """Airflow's own formatters of tracebacks; ours cannot see to what an error tracker takes along."""
    import airflow.sdk

    sources = [path.read_text() for path in Path(airflow.sdk.__file__).parent.rglob("structlog.py")]
    told = [line.strip() for source in sources for line in source.splitlines() if "show_locals" in line]
    assert told
    assert not any("show_locals=True" in line for line in told)
