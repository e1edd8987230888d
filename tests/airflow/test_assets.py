"""What Airflow is told of results and of webhooks, and what it then starts."""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias

from airflow_provider_openai_batches.api.webhooks import WebhookEvent
from airflow_provider_openai_batches.assets import announce_results, webhook_asset
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.triggers.openai_batches import OpenAIBatchTrigger
from tests.airflow.conftest import new_batch, register
from tests.conftest import API_KEY

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection", "airflow_db")]

CONN_ID = "openai_batches_default"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def events_of(name: str) -> list[dict[str, Any]]:
    """The extras of an asset's events, oldest first."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        events = select(AssetEvent.extra).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        return list(session.scalars(events.where(AssetModel.name == name).order_by(AssetEvent.id)))


class TestResults:
    def run(self, run_dag: Callable[[DAG], Any], output_path: str, *outlets: Any, **options: Any) -> str:
        with DAG(f"results_{uuid.uuid4().hex}", schedule=None, start_date=START) as dag:
            OpenAIBatchOperator(
                task_id="label",
                requests=["one", "two"],
                model="gpt-4o-mini",
                output_path=output_path,
                poll_interval=0.05,
                outlets=list(outlets),
                **options,
            )
        return str(run_dag(dag).state)

    def test_the_event_of_a_declared_asset_says_where_the_results_are(
        self, run_dag: Callable[[DAG], Any], tmp_path: Path
    ) -> None:
        asset = Asset("labels_of_reviews")
        assert self.run(run_dag, str(tmp_path), asset) == "success"
        [extra] = events_of("labels_of_reviews")
        assert len(list(read_results(extra))) == 2
        facts = {name: extra[name] for name in ("output_path", "requests", "succeeded", "failed")}
        assert facts == {"output_path": str(tmp_path), "requests": 2, "succeeded": 2, "failed": 0}
        assert {"job_id", "finished_at"} <= extra.keys()

    def test_an_alias_gets_an_asset_with_the_uri_of_the_results(
        self, run_dag: Callable[[DAG], Any], tmp_path: Path
    ) -> None:
        assert self.run(run_dag, str(tmp_path), AssetAlias("any_labels")) == "success"
        [extra] = events_of(f"file://{tmp_path}")
        assert extra["succeeded"] == 2

    @pytest.mark.parametrize(
        ("output_path", "uri"),
        [
            ("s3://my_aws@bucket/labels/2026-11-23", "s3://bucket/labels/2026-11-23"),
            ("gs://bucket/labels", "gs://bucket/labels"),
            ("file:///data/labels", "file:///data/labels"),
            ("/data/labels", "file:///data/labels"),
        ],
    )
    def test_the_uri_is_that_of_the_results_without_the_connection_to_them(self, output_path: str, uri: str) -> None:
        from airflow.sdk.execution_time.context import OutletEventAccessors

        alias, events = AssetAlias("labels"), OutletEventAccessors()
        announce_results({"outlet_events": events}, [alias], {"output_path": output_path, "results": []})
        assert [each.dest_asset_key.uri for each in events[alias].asset_alias_events] == [uri]

    def test_a_job_that_fails_tells_nothing(
        self, run_dag: Callable[[DAG], Any], tmp_path: Path, emulator: Emulator
    ) -> None:
        emulator.add_fault({"on": {"custom_id": "row-0"}, "do": {"outcome": "error"}})
        assert self.run(run_dag, str(tmp_path), Asset("too_many_failed"), AssetAlias("of_failed")) == "failed"
        assert events_of("too_many_failed") == events_of(f"file://{tmp_path}") == []

    def test_a_dry_run_has_no_results(self, run_dag: Callable[[DAG], Any], tmp_path: Path) -> None:
        assert self.run(run_dag, str(tmp_path), AssetAlias("planned"), dry_run=True) == "success"
        assert events_of(f"file://{tmp_path}") == []


def ended(batch_id: str, status: str = "completed", **changed: Any) -> WebhookEvent:
    fields = {"webhook_id": f"wh_{uuid.uuid4().hex}", "id": "evt_1", "created_at": 1_800_000_000, **changed}
    return WebhookEvent(type=f"batch.{status}", object_id=batch_id, **fields)


@pytest.fixture
def emit() -> Callable[..., bool]:
    """What the webhook's route does, in one go; a server looks at its connections now and then, a test at once."""
    from airflow_provider_openai_batches.plugin import account
    from airflow_provider_openai_batches.plugin.events import announce, wake

    account.forget_all()

    def both(event: WebhookEvent, conn_id: str) -> bool:
        is_news = announce(event, conn_id)
        if is_news:
            wake(event, conn_id)
        return is_news

    return both


@pytest.fixture
def encrypting() -> Iterator[None]:
    """Airflow encrypts what it keeps, as everywhere but in tests."""
    from airflow.models import crypto
    from cryptography.fernet import Fernet

    def forget_key() -> None:
        if hasattr(crypto.get_fernet, "cache_clear"):
            crypto.get_fernet.cache_clear()
        else:  # Airflow 3.1
            crypto._fernet = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
        forget_key()
        yield
    forget_key()


class TestWebhookEvents:
    @pytest.fixture
    def asset(self) -> Asset:
        """The asset of a connection, with a DAG that waits for it."""
        conn_id = f"conn_{uuid.uuid4().hex}"
        asset = webhook_asset(conn_id)
        with DAG(f"on_webhook_{conn_id}", schedule=[asset], start_date=START, is_paused_upon_creation=False) as dag:
            pass
        register(dag)
        return asset

    def conn_id(self, asset: Asset) -> str:
        return asset.name.removeprefix("openai_batches/")

    def test_a_webhook_queues_the_dag_that_waits_for_it(self, asset: Asset, emit: Callable[..., bool]) -> None:
        from airflow.models.asset import AssetDagRunQueue
        from airflow.utils.session import create_session
        from sqlalchemy import select

        event = ended("batch_1", "expired")
        assert emit(event, self.conn_id(asset)) is True
        assert events_of(asset.name) == [
            {
                "conn_id": self.conn_id(asset),
                "batch_id": "batch_1",
                "status": "expired",
                "type": "batch.expired",
                "created_at": 1_800_000_000,
                "webhook_id": event.webhook_id,
            }
        ]
        with create_session() as session:
            queued = select(AssetDagRunQueue).where(
                AssetDagRunQueue.target_dag_id == f"on_webhook_{self.conn_id(asset)}"
            )
            assert session.scalar(queued) is not None

    def test_a_repeated_delivery_makes_no_second_event(self, asset: Asset, emit: Callable[..., bool]) -> None:
        event = ended("batch_1")
        assert [emit(event, self.conn_id(asset)) for _ in range(3)] == [True, False, False]
        assert emit(ended("batch_1"), self.conn_id(asset)) is True
        assert len(events_of(asset.name)) == 2

    def test_deliveries_at_the_same_time_make_one_event(self, asset: Asset, emit: Callable[..., bool]) -> None:
        event, together = ended("batch_1"), threading.Barrier(6)

        def deliver(_: int) -> bool:
            together.wait()
            return emit(event, self.conn_id(asset))

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(deliver, range(6))) == [False] * 5 + [True]
        assert len(events_of(asset.name)) == 1

    @pytest.mark.parametrize(
        "event",
        [
            ended("batch_1", "in_progress"),
            WebhookEvent(webhook_id="wh_1", id="evt_1", type="response.completed", created_at=None, object_id="resp_1"),
        ],
    )
    def test_what_is_not_the_end_of_a_batch_does_nothing(
        self, asset: Asset, emit: Callable[..., bool], event: WebhookEvent
    ) -> None:
        assert emit(event, self.conn_id(asset)) is False
        assert events_of(asset.name) == []

    def test_without_a_dag_that_waits_there_is_no_event(self, emit: Callable[..., bool]) -> None:
        assert emit(ended("batch_1"), "nobody_waits") is True
        assert events_of(webhook_asset("nobody_waits").name) == []

    @pytest.mark.parametrize("conn_id", ["openai_batches_default", "Team.A-1", "with space/and slash", "ü"])
    def test_any_connection_has_an_asset_of_its_own(self, conn_id: str) -> None:
        asset = webhook_asset(conn_id)
        assert asset.name == f"openai_batches/{conn_id}"
        assert asset == webhook_asset(conn_id)
        assert asset.uri.startswith("openai-batches://")


@pytest.mark.parametrize("stored", ['{"batch_ids": ["batch_1"]}', None], ids=["as it is", "encrypted"])
def test_trigger_of_a_batch_is_known_however_airflow_keeps_its_arguments(
    monkeypatch: pytest.MonkeyPatch, stored: str | None
) -> None:
    from cryptography.fernet import Fernet

    from airflow_provider_openai_batches.plugin import events

    fernet = Fernet(Fernet.generate_key())
    monkeypatch.setattr(events, "get_fernet", lambda: fernet)
    kept = stored or fernet.encrypt(b'{"batch_ids": ["batch_1"]}').decode()
    assert events._may_name(kept, "batch_1")
    assert not events._may_name(kept, "batch_2")


@pytest.mark.usefixtures("openai_batches_clock")
class TestWaking:
    @pytest.fixture(scope="class")
    def run_of_waiters(self, airflow_db: None) -> None:
        from tests.polling import seed

        seed.register_dag()
        seed.start_run()

    @pytest.fixture
    def wait_for(self, run_of_waiters: None) -> Iterator[Callable[..., Any]]:
        """Add a deferred task that waits for batches; returns a function that says how it is and what woke it."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import delete, func, select

        from tests.polling import seed

        waiters = TaskInstance.dag_id == seed.DAG_ID

        def add(*batch_ids: str, conn_id: str = CONN_ID, **options: Any) -> Callable[[], tuple[str, Any]]:
            with create_session() as session:
                number = session.scalar(select(func.count()).select_from(TaskInstance).where(waiters))
            seed.add_deferred([OpenAIBatchTrigger(conn_id=conn_id, batch_ids=batch_ids, **options).serialize()])

            def state() -> tuple[str, Any]:
                try:
                    from airflow.sdk.serde import deserialize
                except ImportError:  # Airflow 3.1
                    from airflow.serialization.serde import deserialize

                with create_session() as session:
                    ti = session.scalar(select(TaskInstance).where(waiters, TaskInstance.map_index == number))
                    assert ti is not None
                    return str(ti.state), (deserialize(ti.next_kwargs) if ti.next_kwargs else {}).get("event")

            return state

        yield add
        with create_session() as session:
            session.execute(delete(TaskInstance).where(waiters))

    def test_the_task_that_waits_for_the_batch_goes_on_at_once(
        self, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        batch_id, other = new_batch(emulator), new_batch(emulator)
        emulator.advance(125)
        this, that = wait_for(batch_id), wait_for(other)
        assert emit(ended(batch_id), CONN_ID) is True
        state, event = this()
        assert (state, event["status"], event["batches"][batch_id]["status"]) == ("scheduled", "reached", "completed")
        assert API_KEY not in str(event)
        assert that()[0] == "deferred"

    def test_a_claim_that_the_service_does_not_confirm_wakes_nobody(
        self, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        going_on = new_batch(emulator)
        waiters = [wait_for(going_on), wait_for("batch_unknown")]
        for batch_id in (going_on, "batch_unknown"):
            assert emit(ended(batch_id), CONN_ID) is True
        assert [state() for state in waiters] == [("deferred", None)] * 2

    def test_a_service_that_is_down_leaves_the_wait_to_the_poll(
        self, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        batch_id = new_batch(emulator)
        emulator.advance(125)
        emulator.add_fault({"on": {"method": "GET"}, "do": {"status": 503}, "times": None})
        state = wait_for(batch_id)
        assert emit(ended(batch_id), CONN_ID) is True
        assert state()[0] == "deferred"

    def test_a_connection_vouches_for_its_own_waits_only(
        self, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        batch_id = new_batch(emulator)
        emulator.advance(125)
        state = wait_for(batch_id, conn_id="another")
        emit(ended(batch_id), CONN_ID)
        assert state()[0] == "deferred"

    def test_who_waits_for_several_goes_on_when_one_is_enough(
        self, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        batch_id = new_batch(emulator)
        emulator.advance(125)
        for_any, for_all = wait_for(batch_id, "batch_2", until="any"), wait_for(batch_id, "batch_2", until="all")
        emit(ended(batch_id), CONN_ID)
        assert for_any()[0] == "scheduled"
        assert for_any()[1]["batches"]["batch_2"] is None
        assert for_all()[0] == "deferred"

    def test_one_waiter_among_hundreds_is_found_quickly(
        self, encrypting: None, wait_for: Callable[..., Any], emit: Callable[..., bool], emulator: Emulator
    ) -> None:
        from airflow.models.trigger import Trigger
        from airflow.utils.session import create_session
        from sqlalchemy import select

        from tests.polling import seed

        batch_id = new_batch(emulator)
        emulator.advance(125)
        state = wait_for(batch_id)
        many = (OpenAIBatchTrigger(conn_id=CONN_ID, batch_ids=[f"batch_{number:040}"]) for number in range(300))
        seed.add_deferred([trigger.serialize() for trigger in many])
        with create_session() as session:
            kept = list(session.scalars(select(Trigger.encrypted_kwargs).order_by(Trigger.id.desc()).limit(301)))
        assert not any("batch_" in each for each in kept), "or nothing is decrypted"
        began = time.perf_counter()
        emit(ended(batch_id), CONN_ID)
        assert time.perf_counter() - began < 2
        assert state()[0] == "scheduled"
