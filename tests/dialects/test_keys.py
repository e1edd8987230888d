"""Who calls, while it changes: a key that is rotated mid-job, and tokens of an identity, which end all the time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_openai_batches.api.errors import AuthenticationError, CredentialError, InvalidInputError
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator, OpenAIBatchSubmitOperator
from airflow_provider_openai_batches.testing.connection import EmulatorConnection
from tests.airflow.conftest import Attempts, Store, request_lines
from tests.conftest import API_KEY
from tests.dialects.conftest import CHAT, SERVICES, NewEmulator, new_batch
from tests.identity import Identity

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("no_pauses")]

OTHER_KEY = "sk-emulator-abcdefghij9876543210"
RunTrigger = Callable[..., list[Any]]


@pytest.fixture(params=["openai", *SERVICES])
def emulator(request: pytest.FixtureRequest, new_emulator: NewEmulator) -> Emulator:
    return new_emulator(request.param)


class Rotation:
    """The key is changed at the service at once, and in the connection when somebody was refused."""

    def __init__(self, emulator: Emulator, environment: pytest.MonkeyPatch) -> None:
        self.emulator = emulator
        self._connect = EmulatorConnection(emulator, environment)
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> None:
        self.emulator.api_key = OTHER_KEY
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._thread.join()

    def _follow(self) -> None:
        until(lambda: refusals(self.emulator))
        self._connect()


def until(condition: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def event_batch(event: dict[str, Any]) -> str:
    """The one batch of an event that tells of its completion."""
    [batch] = event["batches"].values()
    assert batch["status"] == "completed"
    return str(batch["id"])


def refusals(emulator: Emulator) -> int:
    return sum(call.status == 401 for call in emulator.calls)


def test_a_job_goes_on_when_its_key_is_rotated_while_it_waits(
    emulator: Emulator, run_trigger: RunTrigger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = Attempts(store=Store()).next()

    def segment() -> OpenAIBatchOperator:
        return OpenAIBatchOperator(
            task_id="label", requests=["a", "b"], output_path=str(tmp_path), model="m", poll_interval=0.05
        )

    with pytest.raises(TaskDeferred) as deferred:
        segment().execute(context)
    with Rotation(emulator, monkeypatch):
        [event] = run_trigger(deferred.value.trigger)
    assert segment().execute_complete(context, event)["succeeded"] == 2
    assert refusals(emulator) >= 1
    assert emulator.bought() == {"row-0": 1, "row-1": 1}


def test_a_job_that_waits_in_its_task_reads_the_connection_anew(
    new_emulator: NewEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    emulator = new_emulator("openai", seconds_per_look=5)
    connect = EmulatorConnection(emulator, monkeypatch)
    operator = OpenAIBatchOperator(
        task_id="label",
        requests=["a"],
        output_path=str(tmp_path),
        model="m",
        poll_interval=0.05,
        deferrable=False,
    )

    def rotate() -> None:
        until(lambda: emulator.count("POST", "/v1/batches"))
        connect(password=OTHER_KEY)
        emulator.api_key = OTHER_KEY

    thread = threading.Thread(target=rotate)
    thread.start()
    assert operator.execute(Attempts(store=Store()).next())["succeeded"] == 1
    thread.join()
    assert refusals(emulator) == 1


def test_a_job_whose_key_is_wrong_and_stays_so_says_it(
    new_emulator: NewEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    EmulatorConnection(new_emulator("openai"), monkeypatch)(password=OTHER_KEY)
    operator = OpenAIBatchOperator(task_id="label", requests=["a"], output_path=str(tmp_path), model="m")
    with pytest.raises(AuthenticationError):
        operator.execute(Attempts(store=Store()).next())


def test_a_submit_goes_on_when_its_key_is_rotated_while_it_waits(
    emulator: Emulator, run_trigger: RunTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = OpenAIBatchesHook().upload_file(request_lines(1)).id
    submit = OpenAIBatchSubmitOperator(
        task_id="submit",
        input_file_id=file_id,
        endpoint=CHAT,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=0.05,
    )
    context = Attempts(store=Store()).next()
    with pytest.raises(TaskDeferred) as deferred:
        submit.execute(context)
    with Rotation(emulator, monkeypatch):
        [event] = run_trigger(deferred.value.trigger)
    assert submit.execute_complete(context, event) == event_batch(event)
    assert len(emulator.batches()) == 1


# --- tokens of an identity -------------------------------------------------------------------------------------------


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[Identity]:
    """No key anywhere; azure-identity finds this."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with Identity(token=API_KEY) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        yield identity


@pytest.fixture(params=["azure", "azure-classic"])
def azure(
    request: pytest.FixtureRequest, new_emulator: NewEmulator, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> Emulator:
    """Azure, and a connection without a key."""
    emulator = new_emulator(request.param)
    EmulatorConnection(emulator, monkeypatch)(password=None, extra={"dialect": "azure", "auth": "entra"})
    return emulator


def test_an_identity_does_without_a_key(azure: Emulator, identity: Identity) -> None:
    hook = OpenAIBatchesHook()
    assert hook.wait_for_batch(new_batch(hook), poll_interval=0.01).status == "completed"
    assert identity.asked == 2 * ["https://cognitiveservices.azure.com"], "one for each of the two clients of a hook"
    assert OpenAIBatchesHook().test_connection()[0]


def test_the_scope_of_the_token_can_be_chosen(
    azure: Emulator, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"dialect": "azure", "auth": "entra", "entra_scope": "https://ai.azure.com/.default"}
    EmulatorConnection(azure, monkeypatch)(password=None, extra=extra)
    list(OpenAIBatchesHook().list_batches())
    assert identity.asked == ["https://ai.azure.com"]


def test_a_token_that_ends_during_a_wait_is_renewed_before_its_end(azure: Emulator, identity: Identity) -> None:
    identity.lives_s = 120  # Less than the five minutes before its end in which azure-identity fetches another.
    hook = OpenAIBatchesHook()
    azure.seconds_per_look = 60
    batch_id = new_batch(hook)

    def next_hour(_: float) -> None:
        azure.api_key = identity.token = f"token-{len(identity.asked)}-0123456789"

    assert hook.wait_for_batch(batch_id, poll_interval=0.01, sleep=next_hour).status == "completed"
    assert refusals(azure) == 0
    assert len(set(identity.asked)) == 1


def test_a_job_goes_on_when_its_token_is_revoked_while_it_waits(
    azure: Emulator, identity: Identity, run_trigger: RunTrigger, tmp_path: Path
) -> None:
    context = Attempts(store=Store()).next()

    def segment() -> OpenAIBatchOperator:
        return OpenAIBatchOperator(
            task_id="label", requests=["a", "b"], output_path=str(tmp_path), model="m", poll_interval=0.05
        )

    azure.seconds_per_look = 60
    with pytest.raises(TaskDeferred) as deferred:
        segment().execute(context)

    def revoke() -> None:
        looks = len(azure.calls)
        until(lambda: len(azure.calls) > looks)
        identity.token = OTHER_KEY
        azure.api_key = OTHER_KEY

    thread = threading.Thread(target=revoke)
    thread.start()
    [event] = run_trigger(deferred.value.trigger)
    thread.join()
    assert segment().execute_complete(context, event)["succeeded"] == 2
    assert azure.bought() == {"row-0": 1, "row-1": 1}


def test_a_token_is_never_shown(azure: Emulator, identity: Identity, caplog: pytest.LogCaptureFixture) -> None:
    azure.api_key = identity.token = "token-of-this-machine-0123456789"
    body = {"error": {"message": f"Access denied: {identity.token}", "code": "401"}}
    azure.add_fault({"on": {"path": "/**"}, "do": {"status": 401, "body": body}, "times": None})
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthenticationError) as refused:
        list(OpenAIBatchesHook().list_batches())
    assert identity.token not in str(refused.value)
    assert "Access denied: ***" in str(refused.value)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("airflow_provider")]
    assert not any(identity.token in message for message in ours)
    assert identity.token not in repr(OpenAIBatchesHook().get_conn().settings)


def test_a_machine_without_an_identity_says_so(azure: Emulator, identity: Identity) -> None:
    identity.status = 400
    with pytest.raises(CredentialError, match="No token of Microsoft Entra for"):
        list(OpenAIBatchesHook().list_batches())
    assert azure.calls == []


def test_the_machines_token_goes_to_azure_alone() -> None:
    from airflow_provider_openai_batches.api.dialects import AZURE

    for host in (
        "https://evil.example/openai/v1",
        "https://openai.azure.com.evil.example/openai/v1",
        "http://r.openai.azure.com/openai/v1",
        "https://r.openai.azure.com.:443/openai/v1",
    ):
        with pytest.raises(InvalidInputError, match="goes to hosts of Azure over https alone"):
            ClientSettings(base_url=host, auth="entra", dialect=AZURE)
    for host in ("https://r.openai.azure.com/openai/v1", "https://r.services.ai.azure.com/openai/v1"):
        assert "Authorization" not in ClientSettings(base_url=host, auth="entra", dialect=AZURE).request_headers()


def test_a_key_and_an_identity_are_one_too_many() -> None:
    from airflow_provider_openai_batches.api.dialects import AZURE

    with pytest.raises(InvalidInputError, match="there is a key, but auth is 'entra'"):
        ClientSettings(api_key=API_KEY, base_url="https://r.openai.azure.com/openai", auth="entra", dialect=AZURE)
