"""The end of a job: every row's result in input order, and what it all came to."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.classify import Retry, RowFailure, RowStatus
from airflow_provider_openai_batches.jobs.duplicates import duplicates_file, with_duplicates
from airflow_provider_openai_batches.jobs.kept import kept_file, kept_rows
from airflow_provider_openai_batches.jobs.ledger import Ledger, Shard
from airflow_provider_openai_batches.jobs.ownership import check_owns
from airflow_provider_openai_batches.jobs.parts import in_order, output_column, write_parts
from airflow_provider_openai_batches.jobs.pricing import NORMAL_RATE, Price, cost, usd_text
from airflow_provider_openai_batches.jobs.results import ResultRow, ShardReport, ShardReview
from airflow_provider_openai_batches.jobs.reuse import Caching, new_answers
from airflow_provider_openai_batches.jobs.rounds import RoundFiles

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

_CODES_KEPT = 50
_LONGEST_CODE = 100

_PART = re.compile(r"part-\d{5,}\.(jsonl|parquet)")

_LONGEST_REASON = 1000
"""Characters of a refusal that each row of the shard repeats."""


@contextmanager
def open_shard(job: Job, shard: Shard) -> Iterator[ShardReview]:
    """Give the review of a shard's landed rounds, its files being at hand while the context is open."""
    with ExitStack() as stack:

        def local(kind: str, number: int | None = None) -> Path:
            return stack.enter_context(job.directory.local(shard.file(kind, number)))

        rounds = [
            RoundFiles(
                batch_id=None if landed.direct else landed.batch_id or "",
                batch_status=landed.status or "",
                requests=local("requests", landed.number),
                output=local("output", landed.number) if landed.has_output else None,
                errors=local("errors", landed.number) if landed.has_errors else None,
                direct=landed.direct,
            )
            for landed in shard.landed_rounds
        ]
        if shard.refusal is None:
            yield ShardReview(local("context"), rounds, job.settings.rules)
        else:
            reason = RowFailure(shard.refusal.code, shard.refusal.message[:_LONGEST_REASON])
            unsent = Retry(status=RowStatus.FAILED, error=reason)
            yield ShardReview(local("context"), rounds, job.settings.rules, unsent=unsent)


class _Totals:
    """What the shards add up to."""

    def __init__(self, ledger: Ledger) -> None:
        answered = ledger.answered_rows
        self.by_status: Counter[str] = Counter({"succeeded": answered} if answered else {})
        self.by_error: Counter[str] = Counter()
        self.usage: dict[str, Usage] = {}
        self.direct_usage: dict[str, Usage] = {}
        self.direct_requests = 0
        self.reused = dict(ledger.reused_usage)
        """Tokens of answers that were not bought again."""

    def add(self, model: str, report: ShardReport) -> None:
        self.by_status.update(report.by_status)
        self.by_error.update(report.by_error)
        self.usage[model] = self.usage.get(model, Usage()) + report.usage
        self.direct_usage[model] = self.direct_usage.get(model, Usage()) + report.direct_usage
        self.direct_requests += report.direct_requests

    def costs(self, prices: Mapping[str, Price]) -> tuple[float | None, float | None]:
        """Return what all tokens cost, and those that were bought without a batch; None for what is not known."""
        if not prices:
            return None, None
        at_batch_rate, direct = cost(self.usage, prices), cost(self.direct_usage, prices)
        if at_batch_rate is None or direct is None:
            return None, None if direct is None else direct * NORMAL_RATE
        return at_batch_rate + direct * (NORMAL_RATE - 1), direct * NORMAL_RATE

    def add_duplicate(self, model: str, row: ResultRow, original: ResultRow) -> None:
        self.by_status[row.status.value] += 1
        if row.error is not None:
            self.by_error[row.error.code] += 1
        if original.usage is not None:
            self.reused[model] = self.reused.get(model, Usage()) + original.usage


def finish(job: Job) -> dict[str, Any]:
    """Write the result files and return the manifest. Can be called again, with the same outcome.

    A job that was stopped has rows that never ran; they get a result row that says so.
    """
    ledger, settings = job.ledger, job.settings
    totals = _Totals(ledger)
    results: list[str] = []
    with _sole_publisher(job) as check, ExitStack() as stack:
        staging = stack.enter_context(job.directory.staging())
        caching = stack.enter_context(new_answers(job))
        chains: list[Iterator[ResultRow]] = [
            _model_rows(job, [shard for shard in ledger.shards if shard.model == model], totals, caching)
            for model in dict.fromkeys(shard.model for shard in ledger.shards)
        ]
        if ledger.answered_rows:
            local = stack.enter_context(job.directory.local(kept_file(ledger.plan)))
            chains.append(kept_rows(local))
        rows = in_order(chains)
        if ledger.duplicate_rows:
            local = stack.enter_context(job.directory.local(duplicates_file(ledger.plan)))
            rows = with_duplicates(rows, local, totals.add_duplicate)
        column = output_column(ledger.endpoint, structured=settings.rules.parse_output is not None)
        for part in write_parts([rows], staging, format=settings.output_format, column=column):
            name = f"results/{part.path.name}"
            job.directory.publish(part.path, name, check)
            results.append(job.directory.path(name))
        _drop_stale_parts(job, results, check)
        if caching is not None:
            caching.publish()
    written = sum(totals.by_status.values())
    if written != ledger.rows:
        raise OpenAIBatchesError(
            f"{job.directory} has {ledger.rows:,} rows but {written:,} results. This is a defect; please report it."
        )
    manifest = _manifest(job, totals, results)
    _tell(manifest)
    return manifest


def _tell(manifest: Mapping[str, Any]) -> None:
    """Say in the task's log what came of the rows: a job that may have failures is green with them."""
    codes = ", ".join(f"{count:,} {code}" for code, count in manifest["by_error"].items())
    log.log(
        logging.WARNING if manifest["failed"] else logging.INFO,
        f"Rows: {manifest['requests']:,}, succeeded: {manifest['succeeded']:,}, failed: {manifest['failed']:,}"
        f"{f' ({codes})' if codes else ''}. Batches: {len(manifest['batch_ids']):,}. "
        f"Results: {manifest['output_path']}/results",
    )


def spent(job: Job) -> float | None:
    """Return what the rounds that have landed cost, in USD; None if a price is unknown. Reads all their files."""
    totals = _Totals(job.ledger)
    for shard in job.ledger.shards:
        with open_shard(job, shard) as review:
            totals.add(shard.model, review.report)
    total, _ = totals.costs(job.settings.prices)
    return total


def estimate(job: Job) -> dict[str, Any]:
    """Return the manifest of a dry run. Results of an earlier run stay where they are."""
    totals = _Totals(job.ledger)
    if left := job.ledger.rows - job.ledger.answered_rows:
        totals.by_status[RowStatus.MISSING.value] = totals.by_error["not_submitted"] = left
    manifest = _manifest(job, totals, [])
    usd = manifest["estimated_cost"]
    price = "at a cost that is not known without prices" if usd is None else f"for about {usd_text(usd)} USD"
    to_buy = left - job.ledger.duplicate_rows
    log.info(f"A dry run: nothing was sent. {to_buy:,} of {job.ledger.rows:,} rows would be bought {price}.")
    return manifest


def _model_rows(job: Job, shards: list[Shard], totals: _Totals, caching: Caching | None) -> Iterator[ResultRow]:
    """Iterate over the rows of one model, which its shards hold one after the other."""
    for shard in sorted(shards, key=lambda shard: shard.first_index):
        with open_shard(job, shard) as review:
            yield from review.rows() if caching is None else caching.gathered(shard, review)
            totals.add(shard.model, review.report)
        # Else it stays in memory beside the next one.
        del review


@contextmanager
def _sole_publisher(job: Job) -> Iterator[Callable[[], None]]:
    """See to it that no earlier attempt replaces the result files from now on: all attempts give them the same names.

    What others have ready to publish is removed here; what they make ready later does not pass the check.

    :return: the check, which raises :class:`~.ledger.LedgerError` if another attempt has the job by now
    """

    def check() -> None:
        check_owns(job.directory, job.ledger)

    check()
    job.directory.clean()
    try:
        yield check
    except FileNotFoundError:
        check()  # Another owner may have removed it.
        raise


def _drop_stale_parts(job: Job, results: list[str], check: Callable[[], None]) -> None:
    """Remove result files of a generation that had more of them, or another format.

    Whatever of them is there: an earlier attempt may have removed some.
    """
    for found in sorted(job.directory.names("results")):
        name = f"results/{found}"
        if _PART.fullmatch(found) and job.directory.path(name) not in results:
            check()
            job.directory.delete(name)


def _shortened(by_error: Counter[str]) -> dict[str, int]:
    """Keep the most frequent codes: services may write anything into theirs, and the manifest is an XCom."""
    codes: Counter[str] = Counter()
    for code, count in by_error.items():
        codes[code[:_LONGEST_CODE]] += count
    most = dict(codes.most_common(_CODES_KEPT))
    if len(codes) > _CODES_KEPT:
        most["other"] = most.get("other", 0) + codes.total() - sum(most.values())
    return most


def _manifest(job: Job, totals: _Totals, results: list[str]) -> dict[str, Any]:
    ledger = job.ledger
    succeeded = totals.by_status["succeeded"]
    used, used_directly = (sum(each.values(), start=Usage()) for each in (totals.usage, totals.direct_usage))
    price, direct_price = totals.costs(job.settings.prices)
    reused = _reused(job, totals)
    return {
        "job_id": ledger.job_id,
        "output_path": str(job.directory),
        "results": results,
        "requests": ledger.rows,
        "succeeded": succeeded,
        "failed": ledger.rows - succeeded,
        "kept": ledger.kept_rows,
        "reused": reused,
        "by_status": dict(totals.by_status),
        "by_error": _shortened(totals.by_error),
        "batch_ids": [landed.batch_id for shard in ledger.shards for landed in shard.rounds if landed.batch_id],
        "twins": list(ledger.twins),
        "rounds": max((len(shard.rounds) for shard in ledger.shards), default=0),
        "usage": msgspec.to_builtins(used),
        "cost": price,
        "direct": {
            "requests": totals.direct_requests,
            "usage": msgspec.to_builtins(used_directly),
            "cost": direct_price,
        },
        "estimated_cost": ledger.estimated_cost,
        "started_at": ledger.created_at,
        "finished_at": job.now(),
    }


def _reused(job: Job, totals: _Totals) -> dict[str, Any]:
    """Return what did not have to be bought, and say it."""
    ledger, prices = job.ledger, job.settings.prices
    tokens = sum(totals.reused.values(), start=Usage())
    saved = cost(totals.reused, prices) if prices else None
    kept, cached, duplicates = ledger.kept_rows, ledger.cached_rows, ledger.duplicate_rows
    if kept or cached or duplicates:
        worth = "" if saved is None else f", worth {usd_text(saved)} USD"
        log.info(
            f"Not bought again: {kept:,} rows kept from the run before, {cached:,} from the answer cache, "
            f"{duplicates:,} duplicates; {tokens.total_tokens:,} tokens{worth}."
        )
    return {
        "kept": kept,
        "cache": cached,
        "duplicates": duplicates,
        "usage": msgspec.to_builtins(tokens),
        "cost": saved,
    }
