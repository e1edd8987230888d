"""A job as a task sees it: the service, the directory, and a time that both share and only the test moves."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.dialects import dialect_named
from airflow_provider_openai_batches.api.direct import DirectClient
from airflow_provider_openai_batches.api.models import Batch
from airflow_provider_openai_batches.api.session import ServiceSession
from airflow_provider_openai_batches.api.settings import ClientSettings
from airflow_provider_openai_batches.jobs.classify import RetryLimits
from airflow_provider_openai_batches.jobs.directory import JobDirectory, open_directory
from airflow_provider_openai_batches.jobs.engine import Finished, Stopped, Waiting, advance
from airflow_provider_openai_batches.jobs.job import Job
from airflow_provider_openai_batches.jobs.ledger import Ledger, Owner
from airflow_provider_openai_batches.jobs.opening import Replan, open_ledger
from airflow_provider_openai_batches.jobs.ownership import LEDGER, load_ledger
from airflow_provider_openai_batches.jobs.parts import read_results
from airflow_provider_openai_batches.jobs.plan import JobSettings
from airflow_provider_openai_batches.jobs.purchase import JOB_KEY, ROUND_KEY, SHARD_KEY
from airflow_provider_openai_batches.jobs.requests import RequestTemplate, read_requests
from airflow_provider_openai_batches.jobs.results import Rules
from airflow_provider_openai_batches.jobs.shards import ShardLimits
from airflow_provider_openai_batches.jobs.structured import OutputSchema
from tests.conftest import API_KEY

BATCH_S = 130.0
"""From a batch's creation to its end, and some to spare."""

OWNER = Owner("dag", "task", "run")
AUTHORIZED = {"Authorization": f"Bearer {API_KEY}"}

Watch = Callable[[str], None]
"""Called before and after each operation that others can see, with its name."""


class World:
    """One task instance's job.

    :param base_url: of the emulator, whose time has to stand still
    :param location: the job's directory
    :param rows: the source; a function is called once per plan
    :param per_batch: requests of a batch
    :param max_bytes: of a batch
    :param dialect: which service the emulator stands in for, as the connection names it
    :param settings: further settings of the job
    """

    def __init__(
        self,
        base_url: str,
        location: Path | str,
        rows: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
        *,
        per_batch: int = 10,
        max_bytes: int = 200_000_000,
        max_attempts: int = 3,
        output_type: Any = None,
        model: str | None = "gpt-4o-mini",
        endpoint: str = "/v1/chat/completions",
        body: dict[str, Any] | None = None,
        dialect: str = "openai",
        **settings: Any,
    ) -> None:
        self.base_url = base_url
        self.dialect = dialect_named(dialect)
        self.query: dict[str, str] = {}
        self.location = location
        self.rows: Any = [f"say {index}" for index in range(25)] if rows is None else rows
        output = None if output_type is None else OutputSchema.of(output_type)
        self.template = RequestTemplate(endpoint=endpoint, model=model, body=body or {}, output=output)
        rules = Rules(
            endpoint=endpoint,
            limits=RetryLimits(max_attempts),
            parse_output=None if output is None else output.parse,
            output_schema=None if output is None else output.schema,
        )
        self.settings = JobSettings(
            template=self.template, limits=ShardLimits(per_batch, max_bytes), rules=rules, **settings
        )
        self._http = requests.Session()
        self.now = 0.0
        self.pass_time(0)
        self.born = self.now
        self._calls_before = self._control("GET", "calls")
        self.attempts = 0
        self.plans = 0
        self.watch: Watch | None = None
        self._client = self.client()

    # --- time --------------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time pass, for the service and for the job."""
        self.now = self._control("POST", "advance", {"seconds": seconds})["now"]

    def wait(self, waiting: Waiting) -> None:
        """Let the time pass that a task would wait."""
        self.pass_time(self.wait_s(waiting))

    def wait_s(self, waiting: Waiting) -> float:
        """Return how many seconds a task would wait."""
        until = [waiting.not_before] if waiting.not_before is not None else []
        if waiting.batch_ids:
            until.append(self.now + BATCH_S)
        assert until, "the job waits for nothing, for ever"
        return max(min(until) - self.now, 0) + 1

    def add_faults(self, *rules: dict[str, Any]) -> None:
        """Script faults of the service."""
        self._control("POST", "faults", list(rules))

    def clear_faults(self) -> None:
        """Forget the faults that did not happen."""
        self._control("DELETE", "faults")

    def calls(self, route: str) -> int:
        """How often a route was called, such as ``POST /v1/files``, since this job is there."""
        count: int = self._control("GET", "calls").get(route, 0) - self._calls_before.get(route, 0)
        return count

    # --- the job -----------------------------------------------------------------------------------------------------

    def attempt(
        self,
        name: str | None = None,
        *,
        resuming: bool = False,
        max_tries: int = 0,
        replan: str = "when_finished",
        began_at: str | None = None,
        watch: Watch | None = None,
        owner: Owner = OWNER,
        timeout_s: float | None = None,
    ) -> Job:
        """Open the job as a new attempt, or after a deferral.

        :param watch: is told of each operation of this attempt; default: the world's
        """
        self.pass_time(0)
        self.attempts += 1
        watch = watch or self.watch
        directory, settings = self.directory, self.settings
        if watch is not None:
            directory = WatchedDirectory(directory, watch)
            if (cache := settings.answer_cache) is not None:
                watched = replace(cache, directory=WatchedDirectory(cache.directory, watch))
                settings = replace(settings, answer_cache=watched)
        ledger = open_ledger(
            directory,
            owner,
            attempt=name or f"attempt-{os.getpid()}-{self.attempts}",
            max_tries=max_tries,
            endpoint=self.template.endpoint,
            resuming=resuming,
            began_at=began_at,
            replan=Replan(replan),
        )
        if timeout_s is not None and ledger.deadline is None:
            ledger.deadline = self.now + timeout_s
        return Job(
            directory=directory,
            ledger=ledger,
            settings=settings,
            client=self.client(watch=watch),
            creator=self.client(attempts=1, watch=watch),
            read_requests=self._read,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
            asker=lambda *_: self.asker(watch=watch),
            most_at_once=1 if watch is not None else 8,
        )

    def run(self, job: Job | None = None, **attempt: Any) -> Finished | Stopped:
        """Advance an attempt until it ends, as a deferrable task does: each time after a wait in a new process."""
        job = job or self.attempt(**attempt)
        for _ in range(100):
            outcome = advance(job)
            if not isinstance(outcome, Waiting):
                return outcome
            self.wait(outcome)
            job = self.attempt(resuming=True)
        raise AssertionError("the job does not come to an end")

    @property
    def directory(self) -> JobDirectory:
        """The job's directory."""
        return open_directory(self.location)

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is now."""
        ledger = load_ledger(self.directory, OWNER)
        assert ledger is not None
        return ledger

    # --- what came of it ---------------------------------------------------------------------------------------------

    @property
    def client_settings(self) -> ClientSettings:
        """Where the service is, as a connection would say it."""
        return ClientSettings(
            api_key=API_KEY, base_url=self.base_url, query=self.query, dialect=self.dialect, auth=self.dialect.auth
        )

    def client(self, *, attempts: int = 5, watch: Watch | None = None) -> BatchClient:
        """A client of the service that does not sleep."""
        settings = self.client_settings
        client = BatchClient(settings, attempts=attempts, sleep=lambda _: None)
        if watch is not None:
            client._session = WatchedSession(settings, watch)
        return client

    def asker(self, *, watch: Watch | None = None) -> DirectClient:
        """A client of the models' own endpoints that does not sleep."""
        settings = self.client_settings
        client = DirectClient(settings, sleep=lambda _: None)
        if watch is not None:
            client._session = WatchedSession(settings, watch)
        return client

    def batches(self) -> list[Batch]:
        """All batches of this job, oldest first."""
        job_id = self.ledger.job_id
        found = [batch for batch in self._client.batches_since(self.born) if batch.metadata.get(JOB_KEY) == job_id]
        return found[::-1]

    def files(self) -> list[str]:
        """Ids of the files that the service has, of those that came with this job."""
        return [file.id for file in self._client.list_files() if (file.created_at or 0) >= self.born]

    def bought(self) -> Counter[tuple[int, int]]:
        """Number of batches of each shard and round, without those that failed validation."""
        return Counter(
            (int(batch.metadata[SHARD_KEY]), int(batch.metadata[ROUND_KEY]))
            for batch in self.batches()
            if batch.status != "failed"
        )

    def sent(self) -> Counter[str]:
        """How often each custom_id was sent in a batch that did not fail validation."""
        counts: Counter[str] = Counter()
        for batch in self.batches():
            if batch.status != "failed":
                content = self.content(batch.input_file_id or "")
                counts.update(json.loads(line)["custom_id"] for line in content.splitlines())
        return counts

    def answered(self) -> Counter[str]:
        """How often each custom_id was answered, and so paid for."""
        counts: Counter[str] = Counter()
        for batch in self.batches():
            if batch.output_file_id:
                lines = map(json.loads, self.content(batch.output_file_id).splitlines())
                counts.update(line["custom_id"] for line in lines if line["response"]["status_code"] == 200)
        return counts

    def contents(self) -> Counter[str]:
        """How often each content was answered, and so paid for, whatever the row's name."""
        counts: Counter[str] = Counter()
        for batch in self.batches():
            if batch.output_file_id:
                asked = map(json.loads, self.content(batch.input_file_id or "").splitlines())
                bodies = {line["custom_id"]: json.dumps(line["body"], sort_keys=True) for line in asked}
                lines = map(json.loads, self.content(batch.output_file_id).splitlines())
                counts.update(bodies[line["custom_id"]] for line in lines if line["response"]["status_code"] == 200)
        return counts

    def content(self, file_id: str) -> str:
        """Fetch a file of the service."""
        settings = self.client_settings
        url = settings.url("files", file_id, "content")
        answer = self._http.get(url, params=settings.query, headers=AUTHORIZED, timeout=60)
        answer.raise_for_status()
        return answer.text

    def check_bought_once(self) -> None:
        """Make sure that each round of each shard was bought once, and each answer in a batch."""
        assert set(self.bought().values()) == {1}
        assert set(self.bought()) == {
            (shard.index, each.number) for shard in self.ledger.shards for each in shard.rounds if not each.direct
        }
        assert set(self.answered().values()) == {1}

    def check_results(self, outcome: Finished | Stopped) -> list[dict[str, Any]]:
        """Return the result rows, after making sure that each row has one, in order, with its own answer."""
        rows = list(read_results(outcome.manifest))
        assert [row["index"] for row in rows] == list(range(outcome.manifest["requests"]))
        assert len({row["custom_id"] for row in rows}) == len(rows)
        for row in rows:
            if row["status"] == "succeeded" and row["context"] is not None:
                shown = row["output"].partition("Prompt: ")[2]
                prompt = " ".join(row["context"]["prompt"].split())
                # The emulator quotes the beginning of a long one.
                assert prompt == shown or (len(prompt) > 60 and shown and prompt.startswith(shown))
        assert outcome.manifest["by_status"] == dict(Counter(row["status"] for row in rows))
        return rows

    def _read(self) -> Any:
        self.plans += 1
        source = self.rows() if callable(self.rows) else self.rows
        return read_requests(
            ({"prompt": row, "context": {"prompt": row}} if isinstance(row, str) else row for row in source),
            self.template,
        )

    def _control(self, method: str, what: str, body: Any = None) -> Any:
        url = urljoin(self.base_url, f"/emulator/{what}")
        answer = self._http.request(method, url, json=body, headers=AUTHORIZED, timeout=60)
        answer.raise_for_status()
        return answer.json()


class WatchedSession(ServiceSession):
    """Tells of each HTTP call before it is sent and after it is answered."""

    def __init__(self, settings: ClientSettings, watch: Watch) -> None:
        super().__init__(settings)
        self._watch = watch

    def send(self, method: str, *path: str, **options: Any) -> requests.Response:
        call = " ".join([method, *path[:1], *path[2:]])
        self._watch(f"before {call}")
        response = super().send(method, *path, **options)
        self._watch(f"after {call}")
        return response


class WatchedDirectory(JobDirectory):
    """Tells of each change of a directory before and after it.

    The ledger's copy is left out: nobody reads it. "Before" a file that is published with a check is after the check.
    """

    def __init__(self, directory: JobDirectory, watch: Watch) -> None:
        self._directory = directory
        self._watch = watch

    def __str__(self) -> str:
        return str(self._directory)

    def path(self, name: str) -> str:
        return self._directory.path(name)

    def read(self, name: str) -> bytes | None:
        return self._directory.read(name)

    def write(self, name: str, content: bytes) -> None:
        if name == LEDGER:
            self._directory.write(name, content)
        else:
            self._watched("write", name, lambda: self._directory.write(name, content))

    def claim(self, name: str, content: bytes) -> bool:
        return self._watched("claim", name, lambda: self._directory.claim(name, content))

    def publish(self, local: Path, name: str, check: Callable[[], None] | None = None) -> None:
        if check is None:
            self._watched("publish", name, lambda: self._directory.publish(local, name))
            return

        def checked() -> None:
            check()
            self._watch(f"before publish {name}")

        self._directory.publish(local, name, checked)
        self._watch(f"after publish {name}")

    def local(self, name: str) -> Any:
        return self._directory.local(name)

    def names(self, folder: str) -> list[str]:
        return self._directory.names(folder)

    def exists(self, name: str) -> bool:
        return self._directory.exists(name)

    def delete(self, name: str) -> None:
        self._watched("delete", name, lambda: self._directory.delete(name))

    def delete_folder(self, name: str) -> None:
        self._watched("delete", name, lambda: self._directory.delete_folder(name))

    def staging(self) -> Any:
        return self._directory.staging()

    def clean(self, older_than_s: float = 0.0) -> None:
        self._watched("clean", "", lambda: self._directory.clean(older_than_s))

    def _watched(self, what: str, name: str, work: Callable[[], Any]) -> Any:
        self._watch(f"before {what} {name}")
        result = work()
        self._watch(f"after {what} {name}")
        return result
