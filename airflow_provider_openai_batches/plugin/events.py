"""What a webhook sets off in Airflow: an asset event that starts DAGs, and the early end of a task's wait."""

from __future__ import annotations

import datetime
import logging

from airflow.assets.manager import asset_manager
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.crypto import get_fernet
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from cryptography.fernet import InvalidToken
from sqlalchemy import JSON, select, type_coerce, update

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.webhooks import WebhookEvent
from airflow_provider_openai_batches.assets import webhook_asset
from airflow_provider_openai_batches.plugin.account import account
from airflow_provider_openai_batches.plugin.errors import PageError

log = logging.getLogger(__name__)

_REPEATED_WITHIN = datetime.timedelta(days=4)
"""OpenAI delivers an event again for up to three days."""

_TRIGGER = "airflow_provider_openai_batches.triggers.openai_batches.OpenAIBatchTrigger"


def announce(event: WebhookEvent, conn_id: str) -> bool:
    """Tell Airflow that a batch has ended: DAGs scheduled on :func:`webhook_asset` start.

    Without a DAG that knows the asset there is no event. A repeated delivery does nothing.

    :param event: whose signature was checked with this connection's secret
    :param conn_id: Airflow connection
    :return: whether it was news: False for a repetition, and for what is not the end of a batch
    """
    if event.status is None:
        return False
    asset = webhook_asset(conn_id)
    is_asset = (AssetModel.name == asset.name, AssetModel.uri == asset.uri)
    with create_session() as session:
        # Changes nothing, but holds the row: of two deliveries at the same time, the second sees what the first wrote.
        session.execute(update(AssetModel).where(*is_asset).values(name=AssetModel.name))
        known = session.scalar(select(AssetModel).where(*is_asset))
        if known is None:
            return True
        told = session.scalar(
            select(AssetEvent.id)
            .where(
                AssetEvent.asset_id == known.id,
                AssetEvent.timestamp > datetime.datetime.now(datetime.UTC) - _REPEATED_WITHIN,
                # Airflow 3.1 has a type of its own there, which cannot be looked into.
                type_coerce(AssetEvent.extra, JSON)["webhook_id"].as_string() == event.webhook_id,
            )
            .limit(1)
        )
        if told is not None:
            return False
        extra = {
            "conn_id": conn_id,
            "batch_id": event.batch_id,
            "status": event.status,
            "type": event.type,
            "created_at": event.created_at,
            "webhook_id": event.webhook_id,
        }
        asset_manager.register_asset_change(asset=known, extra=extra, session=session)
    return True


def wake(event: WebhookEvent, conn_id: str) -> None:
    """Let tasks go on that wait for a batch through this connection, if OpenAI, asked for it, says that it is over.

    What cannot be asked now, or is never done because the server ends before it, is found by the next poll.

    :param event: one that was news to :func:`announce`
    :param conn_id: Airflow connection
    """
    batch_id = event.object_id
    waiting = _waiting_for(batch_id, conn_id)
    batch = _retrieve(batch_id, conn_id) if waiting else None
    if batch is None or not batch.is_terminal or batch.files_pending:
        return
    with create_session() as session:
        for trigger_id, batch_ids in waiting.items():
            seen = {each: batch.to_dict() if each == batch_id else None for each in batch_ids}
            news = TriggerEvent({"status": "reached", "batches": seen, "message": ""})
            Trigger.submit_event(trigger_id, news, session=session)
    log.info("A webhook ends the wait of %d tasks for batch %s.", len(waiting), batch_id)


def _waiting_for(batch_id: str, conn_id: str) -> dict[int, list[str]]:
    """Return the triggers of deferred tasks that wait for this batch, each with all batches it waits for."""
    with create_session() as session:
        rows = session.execute(
            select(Trigger.id, Trigger.encrypted_kwargs)
            .join(TaskInstance, TaskInstance.trigger_id == Trigger.id)
            .where(Trigger.classpath == _TRIGGER, TaskInstance.state == "deferred")
        ).all()
        # A look at the bytes before they are decoded makes this ten times as fast.
        ids = [row.id for row in rows if _may_name(row.encrypted_kwargs, batch_id)]
        found = {each.id: each.kwargs for each in session.scalars(select(Trigger).where(Trigger.id.in_(ids)))}
    return {
        trigger_id: kwargs["batch_ids"]
        for trigger_id, kwargs in found.items()
        if kwargs["conn_id"] == conn_id
        and batch_id in kwargs["batch_ids"]
        and (kwargs["until"] == "any" or len(kwargs["batch_ids"]) == 1)
    }


def _may_name(encrypted_kwargs: str, batch_id: str) -> bool:
    if encrypted_kwargs.startswith("{"):
        return batch_id in encrypted_kwargs  # As they arrive from a task that defers; Airflow reads both.
    try:
        return batch_id.encode() in get_fernet().decrypt(encrypted_kwargs.encode())
    except InvalidToken:
        return False  # Encrypted with a key that is lost; the triggerer says so.


def _retrieve(batch_id: str, conn_id: str) -> Batch | None:
    """Return the batch as OpenAI shows it now, or None if it cannot be seen."""
    try:
        with account(conn_id).client() as client:
            return client.retrieve_batch(batch_id)
    except (OpenAIBatchesError, PageError, AirflowNotFoundException) as error:
        log.warning("A webhook says that batch %s has ended, but it cannot be looked at: %s", batch_id, error)
        return None
