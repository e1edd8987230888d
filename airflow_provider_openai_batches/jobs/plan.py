"""Planning: the source is read once, checked row by row, and written as shards. Nothing is sent or paid here."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError, NoRowsError
from airflow_provider_openai_batches.jobs.answer_cache import AnswerCache, ContentKeys
from airflow_provider_openai_batches.jobs.kept import keys_file
from airflow_provider_openai_batches.jobs.ledger import LedgerError, Round, Shard
from airflow_provider_openai_batches.jobs.pricing import Price, cost, price_of, usd_text
from airflow_provider_openai_batches.jobs.requests import RequestTemplate
from airflow_provider_openai_batches.jobs.results import Rules
from airflow_provider_openai_batches.jobs.reuse import Sorter, plan_files, publish_plan, sorter
from airflow_provider_openai_batches.jobs.shards import ShardFiles, ShardLimits, write_shards

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What a job was told, beside its rows.

    :param template: what holds for every request
    :param limits: what one batch may hold
    :param rules: what holds for every answer
    :param max_active_batches: batches of this job that may go on at the same time; None for no limit
    :param queue_limits: prompt tokens that may be queued per model, by all DAGs of the connection together
    :param prices: what tokens cost; empty if that is not known
    :param max_cost: the job is refused before anything is sent if its estimate is above this, in USD
    :param dry_run: plan and estimate, and send nothing
    :param output_format: of the result files
    :param deduplicate: buy rows that ask the same once
    :param answer_cache: answers of all jobs, this one's included; rows that ask the same are bought once then
    :param delete_remote_files: delete the service's copies of all files when the job is finished
    :param files_expire_after: seconds until the service deletes its copies of all files; default: as it does by itself
    :param finish_synchronously_below: so many rows or fewer are not worth another batch, see :mod:`~.direct`; 0: never
    :param cancel_when_late: cancel the batches at the deadline; if not, whoever calls has to mind it
    """

    template: RequestTemplate
    limits: ShardLimits
    rules: Rules
    max_active_batches: int | None = None
    queue_limits: Mapping[str, int] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)
    max_cost: float | None = None
    dry_run: bool = False
    output_format: Literal["jsonl", "parquet"] = "jsonl"
    deduplicate: bool = False
    answer_cache: AnswerCache | None = None
    delete_remote_files: bool = False
    files_expire_after: int | None = None
    finish_synchronously_below: int = 0
    cancel_when_late: bool = True


def make_plan(job: Job) -> None:
    """Read the source into shards and write them into the ledger, all or nothing.

    Rows that the generation before has answered, with the same custom_id and the same request, keep their answers and
    are not sent; nor are those that the answer cache knows, or that ask what an earlier row asks (see :mod:`~.reuse`).

    :raises InvalidInputError: a row cannot be sent, there is no row, or the estimate is above ``max_cost``
    :raises LedgerError: answers of the generation before are not where they should be
    """
    ledger = job.ledger
    replaced = _Leftovers([shard.folder for shard in ledger.shards], [ledger.plan])
    if not job.settings.dry_run:
        replaced.plans.append(ledger.earlier_plan)
    plan = uuid.uuid4().hex
    results = _earlier_results(job)
    with job.directory.staging() as staging:
        with sorter(job, staging, ledger.earlier_plan, results) as rows:
            written = write_shards(rows.to_send(job.read_requests()), job.settings.limits, staging)
            shards = [_publish(job, files, replaced) for files in written]
        if not rows.rows:
            raise NoRowsError
        # What is answered already costs nothing, whatever the prices.
        ledger.estimated_cost = cost(rows.usage, job.settings.prices) if job.settings.prices or not shards else None
        _check_cost(job, rows)
        publish_plan(job, rows, staging, plan)
    ledger.rows, ledger.kept_rows, ledger.cached_rows = rows.rows, rows.kept, rows.cached
    ledger.duplicate_rows, ledger.reused_usage = rows.duplicates, rows.reused
    ledger.shards, ledger.plan, ledger.service = shards, plan, ContentKeys(job.client.settings).service
    # A dry run is no plan: the next attempt reads the source again.
    ledger.planned = not job.settings.dry_run
    if ledger.planned:
        ledger.earlier_manifest = None
    job.save()
    replaced.delete(job)
    size, tokens = (sum(getattr(shard.round, name) for shard in shards) for name in ("bytes", "tokens"))
    reused = {
        "kept from the run before": ledger.kept_rows,
        "from the answer cache": ledger.cached_rows,
        "the same as an earlier row": ledger.duplicate_rows,
    }
    parts = [f"{count:,} {where}" for where, count in reused.items() if count]
    parts.append(
        f"{rows.rows - sum(reused.values()):,} to send, in {len(shards):,} shard{'s' * (len(shards) != 1)} of "
        f"{size:,} bytes and about {tokens:,} prompt tokens"
        if shards
        else "nothing to send"
    )
    log.info("Rows planned: %s; %s.", f"{ledger.rows:,}", "; ".join(parts))


def split_shard(job: Job, shard: Shard) -> None:
    """Replace a shard that can never fit the model's queue by two halves of it. It has to be in its first round."""
    replaced = _Leftovers([shard.folder], [])
    with job.directory.staging() as staging, ExitStack() as stack:
        contexts = stack.enter_context(stack.enter_context(job.directory.local(shard.file("context"))).open("rb"))
        requests = stack.enter_context(stack.enter_context(job.directory.local(shard.file("requests", 1))).open("rb"))
        halves = [
            _publish(job, _copy_part(contexts, requests, count, shard, staging), replaced)
            for count in (shard.requests // 2, shard.requests - shard.requests // 2)
        ]
    at = job.ledger.shards.index(shard)
    job.ledger.shards[at : at + 1] = halves
    if shard.round.file_id is not None:
        job.ledger.unused_files.append(shard.round.file_id)
    job.save()
    replaced.delete(job)
    log.info("Shard %d is larger than the whole queue of %s: split it in two.", shard.index, shard.model)


@dataclass
class _Leftovers:
    """What a new plan makes useless."""

    folders: list[str]
    plans: list[str]

    def delete(self, job: Job) -> None:
        for folder in self.folders:
            job.directory.delete_folder(folder)
        for plan in filter(None, self.plans):
            for name in plan_files(plan):
                job.directory.delete(name)


def _earlier_results(job: Job) -> list[str]:
    """Return the result files of the generation before, which may have been moved with the whole directory."""
    names = [f"results/{path.rpartition('/')[2]}" for path in job.ledger.earlier_results]
    needed = [*names, keys_file(job.ledger.earlier_plan)] if names else []
    missing = [job.directory.path(name) for name in needed if not job.directory.exists(name)]
    if missing:
        more = f", nor are {len(missing) - 1:,} more files" if len(missing) > 1 else ""
        raise LedgerError(
            f"{missing[0]} is not there{more}. The answers that this job has paid for cannot be found without it. Put "
            "it back; or, to buy all rows again, use another output_path or delete the whole directory. With "
            "replan='never' the task returns the manifest it had."
        )
    return [job.directory.path(name) for name in names]


def _publish(job: Job, files: ShardFiles, leftovers: _Leftovers) -> Shard:
    """Move a shard's files to a folder of its own, which no other attempt that is planning writes to."""
    ledger = job.ledger
    while True:
        shard = Shard(
            index=ledger.next_shard,
            model=files.model,
            first_index=files.first_index,
            requests=files.requests,
            rounds=[Round(1, files.requests, files.bytes, files.tokens)],
        )
        ledger.next_shard += 1
        if job.directory.claim(f"{shard.folder}/planned-by.json", msgspec.json.encode(ledger.attempt)):
            break
        leftovers.folders.append(shard.folder)
    job.directory.publish(files.requests_path, shard.file("requests", 1))
    job.directory.publish(files.context_path, shard.file("context"))
    return shard


def _copy_part(contexts: BinaryIO, requests: BinaryIO, count: int, shard: Shard, staging: Path) -> ShardFiles:
    """Write the next rows of a shard's files as files of their own."""
    paths = staging / "context", staging / "requests"
    first_index = None
    with paths[0].open("wb") as sink:
        for line in islice(contexts, count):
            first_index = msgspec.json.decode(line)["index"] if first_index is None else first_index
            sink.write(line)
    with paths[1].open("wb") as sink:
        sink.writelines(islice(requests, count))
    size = paths[1].stat().st_size
    return ShardFiles(
        index=0,
        model=shard.model,
        requests_path=paths[1],
        context_path=paths[0],
        first_index=first_index or 0,
        requests=count,
        bytes=size,
        inputs=count,
        tokens=-(-shard.round.tokens * size // max(shard.round.bytes, 1)),
    )


def _check_cost(job: Job, rows: Sorter) -> None:
    settings, estimated = job.settings, job.ledger.estimated_cost
    if settings.max_cost is None and not settings.dry_run:
        return
    prices = {model: price_of(model, settings.prices) for model in rows.usage}
    uncapped = sum(rows.uncapped[model] for model, price in prices.items() if price is not None and price.output)
    not_counted = ""
    if uncapped and estimated is not None:
        cap = "max_output_tokens" if job.ledger.endpoint.endswith("/responses") else "max_completion_tokens"
        not_counted = f" Answers of {uncapped:,} rows are not in it, since nothing limits them: set {cap} in `body`."
        log.warning("The estimate is %s USD.%s", usd_text(estimated), not_counted)
    if settings.max_cost is None:
        return
    if estimated is None:
        unknown = [model for model, price in prices.items() if price is None]
        raise InvalidInputError(
            "max_cost",
            f"the price of {', '.join(unknown) or 'a model, or of its output,'} is not known. Give `prices` for every "
            "model, or take max_cost out.",
        )
    if estimated > settings.max_cost:
        raise InvalidInputError(
            "max_cost",
            f"the job is estimated at {usd_text(estimated)} USD, more than {usd_text(settings.max_cost)}. Nothing was "
            "sent. Send fewer rows, lower their token caps, or raise max_cost; dry_run shows the estimate."
            f"{not_counted}",
        )
