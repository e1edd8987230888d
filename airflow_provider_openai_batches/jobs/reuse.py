"""Which rows of a plan have to be bought, and which have or will have an answer that is paid for."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from airflow_provider_openai_batches.api.models import Usage
from airflow_provider_openai_batches.jobs.answer_cache import CachedAnswer, CachedAnswers, ContentKeys, NewAnswers
from airflow_provider_openai_batches.jobs.classify import RowStatus
from airflow_provider_openai_batches.jobs.duplicates import FirstRows, duplicate_line, duplicates_file, first_rows
from airflow_provider_openai_batches.jobs.kept import (
    EarlierAnswers,
    contents_file,
    earlier_answers,
    kept_file,
    keys_file,
    row_key,
)
from airflow_provider_openai_batches.jobs.pricing import most_output_tokens
from airflow_provider_openai_batches.jobs.requests import Request
from airflow_provider_openai_batches.jobs.results import ResultRow, ShardReview
from airflow_provider_openai_batches.jobs.segments import KEY_BYTES

if TYPE_CHECKING:
    from airflow_provider_openai_batches.jobs.job import Job
    from airflow_provider_openai_batches.jobs.ledger import Round, Shard

log = logging.getLogger(__name__)


def plan_files(plan: str) -> list[str]:
    """Name all files that a plan may have beside its shards."""
    return [keys_file(plan), kept_file(plan), contents_file(plan), duplicates_file(plan)]


class Sorter:
    """Passes on the requests that have to be sent, and writes down what each row is and what is answered already.

    :param files: by name: where ``keys``, ``kept``, ``contents`` and ``duplicates`` go
    :param earlier: answers of the generation before
    :param contents: tells which rows ask the same; None if each is to be bought
    :param firsts: which row asked something first
    :param cache: answers of other jobs; None for no cache
    :param priced: whether it matters what the requests to send will use
    """

    def __init__(
        self,
        files: Mapping[str, BinaryIO],
        earlier: EarlierAnswers,
        contents: ContentKeys | None,
        firsts: FirstRows,
        cache: CachedAnswers | None,
        *,
        priced: bool,
    ) -> None:
        self.rows = self.kept = self.cached = self.duplicates = 0
        self.uncapped: Counter[str] = Counter()
        """Requests to send whose answers nothing limits, by model; if anybody asks."""
        self.reused: dict[str, Usage] = {}
        """Tokens in the answers that were taken over, by the rows' model."""
        self.usage: dict[str, Usage] = {}
        """What the requests to send will use at most, by model, as far as that can be told; if anybody asks."""
        self._files, self._earlier, self._contents = files, earlier, contents
        self._firsts, self._cache, self._priced = firsts, cache, priced

    def to_send(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Iterate over the requests without an answer. When all are read, the files are complete."""
        for request in requests:
            self.rows += 1
            self._files["keys"].write(row_key(request))
            content = first = None
            if self._contents is not None:
                content = self._contents.of(request)
                first = self._firsts.note(content, request.index)
                self._files["contents"].write(content)
            if (row := self._earlier.find(request)) is not None:
                self.kept += 1
                self._take_over(request, row)
            elif first is not None:
                self.duplicates += 1
                self._files["duplicates"].write(duplicate_line(request, first))
            elif content is not None and (row := self._earlier.find_same(request, content)) is not None:
                self.kept += 1
                self._take_over(request, row)
            elif content is not None and self._cache is not None and (answer := self._cache.find(content)) is not None:
                self.cached += 1
                self._take_over(request, _row(request, answer))
            else:
                if self._priced:
                    usage = Usage(input_tokens=request.tokens, output_tokens=most_output_tokens(request.line))
                    self.uncapped[request.model] += not usage.output_tokens
                    self.usage[request.model] = self.usage.get(request.model, Usage()) + usage
                yield request

    def _take_over(self, request: Request, row: ResultRow) -> None:
        self._files["kept"].write(msgspec.json.encode(row) + b"\n")
        if row.usage is not None:
            self.reused[request.model] = self.reused.get(request.model, Usage()) + row.usage


@contextmanager
def sorter(job: Job, staging: Path, earlier_plan: str, earlier_results: list[str]) -> Iterator[Sorter]:
    """Open all that may have answers to a job's rows.

    :param job: whose rows these are
    :param staging: a local directory for what is written down
    :param earlier_plan: of the generation before
    :param earlier_results: its result files; empty if it left none
    """
    settings = job.settings
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((staging / name).open("wb"))
            for name in ("keys", "kept", "contents", "duplicates")
        }
        cache = None
        if settings.answer_cache is not None:
            settings.answer_cache.check()
            opened = settings.answer_cache.answers(job.now(), settings.rules.parse_output)
            cache = stack.enter_context(opened)
        yield Sorter(
            files,
            stack.enter_context(earlier_answers(job.directory, earlier_plan, earlier_results)),
            ContentKeys(job.client.settings) if settings.deduplicate or cache is not None else None,
            stack.enter_context(first_rows()),
            cache,
            priced=bool(settings.prices),
        )


def publish_plan(job: Job, sorted_rows: Sorter, staging: Path, plan: str) -> None:
    """Move what was written down to its place, once the sorter is closed.

    :param plan: names the files
    """
    wanted = {"keys": keys_file(plan), "kept": kept_file(plan)}
    if job.settings.answer_cache is not None or job.settings.deduplicate:
        wanted["contents"] = contents_file(plan)
    if sorted_rows.duplicates:
        wanted["duplicates"] = duplicates_file(plan)
    for name, file in wanted.items():
        job.directory.publish(staging / name, file)


def keep_apart(job: Job) -> None:
    """Let no other row have a job's answers if its connection leads elsewhere by now than when its rows were planned.

    The keys of what they ask name the service they were to be sent to.
    """
    ledger = job.ledger
    keys = contents_file(ledger.plan)
    if ledger.service in ("", ContentKeys(job.client.settings).service) or not job.directory.exists(keys):
        return
    job.directory.delete(keys)
    log.warning("The connection leads elsewhere than when the rows were planned: no other row will use their answers.")


class Caching:
    """Gathers a job's answers for the answer cache while its result rows pass by.

    :param job: whose answers these are
    :param answers: where they are gathered
    :param keys: the plan's :func:`contents_file`
    """

    def __init__(self, job: Job, answers: NewAnswers, keys: BinaryIO) -> None:
        self._job, self._answers, self._keys = job, answers, keys
        rounds = [landed for shard in job.ledger.shards for landed in shard.rounds]
        self._rounds = [landed for landed in rounds if _is_news(landed)]

    def gathered(self, shard: Shard, review: ShardReview) -> Iterator[ResultRow]:
        """Pass on the rows of a shard, all of which this job has bought."""
        landed_rounds = shard.landed_rounds
        for position, (row, outcome) in enumerate(review.rows_and_outcomes()):
            number = review.decided_by(position)
            if number and row.status == RowStatus.SUCCEEDED and _is_news(landed := landed_rounds[number - 1]):
                is_other = outcome.written is None
                key = os.pread(self._keys.fileno(), KEY_BYTES, KEY_BYTES * row.index)
                answer = CachedAnswer(
                    output=msgspec.Raw(msgspec.json.encode(outcome.output if is_other else outcome.written)),
                    is_text=not is_other,
                    finish_reason=row.finish_reason,
                    model=row.model,
                    usage=row.usage,
                    batch_id=row.batch_id,
                    request_id=row.request_id,
                )
                self._answers.add(key, landed.landed_at, answer)
            yield row

    def publish(self) -> None:
        """Put the answers into the cache. The results are written already, and do not depend on it."""
        try:
            count = self._answers.publish(self._job.now())
        except Exception:
            # Each kind of storage has errors of its own.
            log.warning("The answers could not be put into the answer cache: others will buy them.", exc_info=True)
            return
        if self._rounds:
            for landed in self._rounds:
                landed.cached = True
            self._job.save()
        if count:
            log.info(f"Put {count:,} answers into the answer cache {self._answers.directory}.")


@contextmanager
def new_answers(job: Job) -> Iterator[Caching | None]:
    """Open the way into the answer cache; None if there is none, or the job was planned without one."""
    cache, name = job.settings.answer_cache, contents_file(job.ledger.plan)
    if cache is None or not job.directory.exists(name):
        yield None
        return
    with ExitStack() as stack:
        staging = stack.enter_context(TemporaryDirectory(prefix="openai-batches-"))
        keys = stack.enter_context(stack.enter_context(job.directory.local(name)).open("rb"))
        yield Caching(job, NewAnswers(cache, Path(staging)), keys)


def _is_news(landed: Round) -> bool:
    """Whether the answer cache lacks a round's answers. An earlier version has not written down when they came."""
    return landed.landed_at > 0 and not landed.cached


def _row(request: Request, answer: CachedAnswer) -> ResultRow:
    return ResultRow(
        custom_id=request.custom_id,
        index=request.index,
        status=RowStatus.SUCCEEDED,
        output=answer.output,
        error=None,
        finish_reason=answer.finish_reason,
        model=answer.model,
        usage=answer.usage,
        batch_id=answer.batch_id,
        request_id=answer.request_id,
        attempts=0,
        context=request.raw_context,
    )
