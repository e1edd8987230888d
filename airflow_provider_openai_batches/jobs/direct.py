"""The last rows of a job without another batch, so that it need not wait another day for a handful.

A job's rows first go through a batch. When nothing else of the job goes on, and all that is worth another try are a
few rows, they are sent one by one to the model's own endpoint. That is a round like any other: it has a request file,
and an output and an error file as a batch has them, and is reviewed like one. Only it has no batch, costs the normal
rate, and its answers come within minutes.

Where the endpoint cannot be asked, the rows go into a batch after all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from airflow_provider_openai_batches.api.errors import OpenAIBatchesError
from airflow_provider_openai_batches.api.models import BatchStatus, Usage
from airflow_provider_openai_batches.api.tracing import traced
from airflow_provider_openai_batches.jobs.classify import STOPPED
from airflow_provider_openai_batches.jobs.finish import spent
from airflow_provider_openai_batches.jobs.ledger import Round, Shard
from airflow_provider_openai_batches.jobs.lines import parse_line
from airflow_provider_openai_batches.jobs.ownership import check_owns
from airflow_provider_openai_batches.jobs.pricing import NORMAL_RATE, cost, most_output_tokens, usd_text
from airflow_provider_openai_batches.jobs.sending import (
    Meaning,
    Row,
    Sent,
    look_at_rows,
    meaning,
    send,
    sending_folder,
)

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job

log = logging.getLogger(__name__)

MOST_PAUSES = 3
"""Turns in a row without any answer after which a batch is bought instead."""

PAUSE_S = 30.0
"""First pause after a turn that left rows without an answer; each further one is twice as long."""


def holds_back(job: Job) -> bool:
    """Whether what is left of shards waits for the others: so far it is so little that it may go without a batch."""
    most, ledger = job.settings.finish_synchronously_below, job.ledger
    if not most or ledger.stopping or ledger.batches_only is not None:
        return False
    left = [shard.round for shard in ledger.shards if shard.is_between]
    return sum(each.requests + each.left_out for each in left) <= most


def finish_directly(job: Job) -> bool:
    """Send what is left of a job without a batch, if it is time for that.

    :return: whether the shards have something to do now
    """
    shards = [shard for shard in job.ledger.shards if shard.round.is_sending]
    if not shards:
        shards = _due(job)
        if not shards:
            return False
        if not _begin(job, shards):
            return True
    with _rows(job, shards) as rows:
        if _may_send(job) and max(shard.round.not_before for shard in shards) > job.now():
            return False
        sent = _send(job, rows) if _may_send(job) else None
    with _rows(job, shards) as rows:  # Another attempt may have answered some.
        return _wind_up(job, shards, rows, sent)


def _may_send(job: Job) -> bool:
    ledger = job.ledger
    return bool(job.settings.finish_synchronously_below) and not ledger.stopping and ledger.batches_only is None


def _due(job: Job) -> list[Shard]:
    """Return the shards whose rest is to be sent now: all that have one, if there is nothing else."""
    open_shards = [shard for shard in job.ledger.shards if not shard.finished and shard.refusal is None]
    is_time = holds_back(job) and all(shard.is_between for shard in open_shards)
    return open_shards if is_time else []


def _begin(job: Job, shards: Sequence[Shard]) -> bool:
    """Decide to send shards' next rounds without a batch, and say what that costs; return whether it was decided so."""
    rows = sum(shard.round.requests for shard in shards)
    at_batch_rate = _estimate(job, shards)
    most = job.settings.max_cost
    if most is not None and at_batch_rate is not None:
        so_far = spent(job)
        if so_far is None or so_far + at_batch_rate * NORMAL_RATE > most:
            so_far_text = "an unknown amount" if so_far is None else f"{usd_text(so_far)} USD"
            job.ledger.batches_only = "max_cost"
            job.save()
            log.warning(
                f"{rows:,} rows are left, which without a batch may cost {usd_text(at_batch_rate * NORMAL_RATE)} USD. "
                f"The job has cost {so_far_text}, and max_cost is {usd_text(most)}: they go into another batch."
            )
            return False
    for shard in shards:
        current = shard.round
        if current.file_id is not None:  # It waited for a batch before.
            job.ledger.unused_files.append(current.file_id)
        current.direct, current.file_id, current.not_before, current.troubles = True, None, 0.0, 0
    job.save()
    beyond = (
        "about twice a batch's rate (the job has no `prices`)"
        if at_batch_rate is None
        else f"about {usd_text(at_batch_rate * NORMAL_RATE)} USD, {usd_text(at_batch_rate * (NORMAL_RATE - 1))} more "
        "than in a batch"
    )
    log.info(f"{rows:,} rows are left: sending them to {job.ledger.endpoint} without another batch, for {beyond}.")
    return True


def _estimate(job: Job, shards: Sequence[Shard]) -> float | None:
    """Return what the rounds cost in a batch: prompts, and answers as far as they are capped."""
    if not job.settings.prices:
        return None
    usage: dict[str, Usage] = {}
    for shard in shards:
        most = 0
        with job.directory.local(shard.file("requests", shard.round.number)) as path, path.open("rb") as lines:
            most = sum(map(most_output_tokens, lines))
        tokens = Usage(input_tokens=shard.round.tokens, output_tokens=most)
        usage[shard.model] = usage.get(shard.model, Usage()) + tokens
    return cost(usage, job.settings.prices)


@contextmanager
def _rows(job: Job, shards: Sequence[Shard]) -> Iterator[list[Row]]:
    """Give the rows of shards' rounds, as they are now, their requests being at hand while the context is open."""
    with ExitStack() as stack:
        rows = []
        for shard in shards:
            path = stack.enter_context(job.directory.local(shard.file("requests", shard.round.number)))
            rows += look_at_rows(job, shard, path)
        yield rows


@traced("openai_batches.direct")
def _send(job: Job, rows: Sequence[Row]) -> Sent:
    now = job.now()
    left = [row for row in rows if not row.answered and row.settled_at <= now]
    dead = sum(row.settled_at > 0 for row in left)
    sent = send(job, left)
    if sent.lost + dead:
        # See the module's text on sending: this is all that can be known of them.
        log.warning(
            "%d calls gave no answer and may be billed all the same. Their rows are sent again.", sent.lost + dead
        )
    return sent


def _wind_up(job: Job, shards: Sequence[Shard], rows: Sequence[Row], sent: Sent | None) -> bool:
    """Decide what becomes of the rounds after a turn at sending, or without one."""
    now = job.now()
    by_shard = {shard.index: [row for row in rows if row.shard is shard] for shard in shards}
    done = [shard for shard in shards if all(row.answered for row in by_shard[shard.index])]
    for shard in done:
        _land(job, shard, by_shard[shard.index], BatchStatus.COMPLETED)
    rest = [shard for shard in shards if shard not in done]
    if not rest:
        return True
    open_rows = [row for row in rows if not row.answered]
    under_way = [row.settled_at for row in open_rows if row.settled_at > now]
    if sent is not None and sent.failure is not None:
        _face_trouble(job, rest, sent.failure, progress=sent.answers > 0)
    elif _may_send(job) and len(under_way) == len(open_rows):
        _wait_until(job, rest, min(under_way))
    if _may_send(job):
        return bool(done)
    if under_way:
        # What another attempt has sent is paid for.
        _wait_until(job, rest, max(under_way))
        return bool(done)
    for shard in rest:
        if any(row.answered for row in by_shard[shard.index]):
            _land(job, shard, by_shard[shard.index], STOPPED)
        else:
            job.directory.delete_folder(sending_folder(shard))
            shard.round.direct, shard.round.not_before, shard.round.troubles = False, 0.0, 0
    job.save()
    return True


def _face_trouble(job: Job, shards: Sequence[Shard], failure: OpenAIBatchesError, *, progress: bool) -> None:
    """Pause after a turn that left rows without an answer, or leave them to a batch."""
    troubles = 0 if progress else max(shard.round.troubles for shard in shards) + 1
    if meaning(failure) is Meaning.USE_A_BATCH or troubles > MOST_PAUSES:
        job.ledger.batches_only = str(failure)
        job.save()
        log.warning("The last rows that have no answer yet go into another batch: %s", failure)
        return
    wait = max(failure.retry_after_s or 0.0, PAUSE_S * 2.0 ** max(troubles - 1, 0) * job.patience)
    for shard in shards:
        shard.round.troubles = troubles
    _wait_until(job, shards, job.now() + wait)
    log.warning("The last rows are sent on in %.0f seconds: %s", wait, failure)


def _wait_until(job: Job, shards: Sequence[Shard], at: float) -> None:
    for shard in shards:
        shard.round.not_before = at
    job.save()


def _land(job: Job, shard: Shard, rows: Sequence[Row], status: str) -> None:
    """Write the round's output and error file from its rows' answers."""
    current = shard.round
    counts: Counter[str] = Counter()
    with job.directory.staging() as staging, ExitStack() as stack:
        sinks = {kind: stack.enter_context((staging / kind).open("wb")) for kind in ("output", "errors")}
        for row in rows:
            answer = job.directory.read(row.file("answer")) if row.answered else None
            line = parse_line(answer) if answer else None
            if answer is not None:
                kind = "output" if line is not None and line.is_success else "errors"
                sinks[kind].write(answer)
                counts[kind] += 1
        for kind, sink in sinks.items():
            sink.close()
            if counts[kind]:
                # An attempt that was thought dead may have fewer answers.
                job.directory.publish(
                    staging / kind, shard.file(kind, current.number), lambda: check_owns(job.directory, job.ledger)
                )
    _landed(job, shard, current, counts, status)


def _landed(job: Job, shard: Shard, current: Round, counts: Counter[str], status: str) -> None:
    folder = sending_folder(shard)
    current.has_output, current.has_errors = bool(counts["output"]), bool(counts["errors"])
    current.status, current.landed, current.troubles, current.not_before = status, True, 0, 0.0
    current.landed_at = job.now()
    job.save()
    job.directory.delete_folder(folder)
    log.info("Shard %d, round %d, sent without a batch: %d answers and %d errors.", shard.index, current.number,
             counts["output"], counts["errors"])  # fmt: skip
