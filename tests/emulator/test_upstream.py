"""With an upstream, each request is really asked, once, and never too many at a time."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from openai import InternalServerError, OpenAI

from airflow_provider_openai_batches.emulator import Emulator

from .batches import request, results, submit, wait_until
from .process import emulator_process


class Model:
    """A small OpenAI-compatible server. ``reply`` turns the question and its attempt number into an answer."""

    def __init__(self, reply: Callable[[str, int], tuple[int, Any]]) -> None:
        self.asked: Counter[str] = Counter()
        self.paths: set[str] = set()
        self.keys: set[str | None] = set()
        self.most_at_once = 0
        self._at_once = 0
        self._reply = reply
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def hold(self) -> None:
        """Answer nothing until :meth:`release`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def release(self) -> None:
        """Answer again."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def __exit__(self, *_: object) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stopped = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _answer(self, incoming: web.Request) -> web.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            body = await incoming.json()
            question = body["messages"][0]["content"]
            self.asked[question] += 1
            self.paths.add(incoming.path)
            self.keys.add(incoming.headers.get("Authorization"))
            await asyncio.sleep(0.01)
            await self._gate.wait()
            status, reply = self._reply(question, self.asked[question])
            if isinstance(reply, str):
                return web.Response(status=status, text=reply)
            return web.json_response(reply, status=status)
        finally:
            self._at_once -= 1


def good(question: str, _attempt: int = 1) -> tuple[int, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return 200, {"choices": [{"message": {"content": f"Really: {question}"}}], "usage": usage}


@pytest.fixture
def model() -> Iterator[Model]:
    with Model(good) as server:
        yield server


def finish(client: OpenAI, batch_id: str) -> Any:
    wait_until(lambda: client.batches.retrieve(batch_id).status in ("completed", "cancelled", "expired"))
    return client.batches.retrieve(batch_id)


def test_every_request_is_asked_once_with_bounded_concurrency(model: Model) -> None:
    with Emulator(speed=100, upstream=f"{model.url}/v1", upstream_api_key="k", upstream_concurrency=3) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batches = [submit(client, map(request, range(start, start + 20))) for start in (0, 20)]
        ended = [finish(client, batch.id) for batch in batches]
    assert [batch.request_counts.completed for batch in ended] == [20, 20]
    assert set(model.asked.values()) == {1}
    assert len(model.asked) == 40
    assert model.most_at_once == 3
    assert (model.paths, model.keys) == ({"/v1/chat/completions"}, {"Bearer k"})
    assert ended[0].usage.total_tokens == 20 * 5


def test_answers_are_the_upstreams_own(model: Model) -> None:
    with Emulator(speed=100, upstream=model.url) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = finish(client, submit(client, map(request, range(3))).id)
        lines = results(client, batch.output_file_id)
    assert lines["row-2"]["response"]["body"] == good("Question 2")[1]
    assert model.paths == {"/v1/chat/completions"}


def test_single_request_is_passed_on_once_and_its_refusal_passed_back(model: Model) -> None:
    with Emulator(speed=0, upstream=f"{model.url}/v1") as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any", max_retries=0)
        answer = client.chat.completions.create(**request(1)["body"])
        assert answer.choices[0].message.content == "Really: Question 1"
        assert model.asked == {"Question 1": 1}
    with Model(lambda *_: (503, "<html>overloaded</html>")) as busy, Emulator(upstream=busy.url) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any", max_retries=0)
        with pytest.raises(InternalServerError, match="overloaded"):
            client.chat.completions.create(**request(1)["body"])
        assert busy.asked.total() == 1


def test_busy_upstream_is_asked_again_and_then_becomes_an_error_line() -> None:
    def reply(question: str, attempt: int) -> tuple[int, Any]:
        match question:
            case "Question 0":
                return (429, {"error": {"message": "slow down"}}) if attempt < 3 else good(question)
            case "Question 1":
                return 503, "<html>overloaded</html>"
            case "Question 2":
                return 400, {"error": {"message": "bad", "code": "bad"}}
        return 200, "not json"

    with (
        Model(reply) as model,
        Emulator(speed=100, upstream=f"{model.url}/v1", upstream_backoff=0.001) as emulator,
    ):
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = finish(client, submit(client, map(request, range(4))).id)
        assert results(client, batch.output_file_id).keys() == {"row-0"}
        errors = results(client, batch.error_file_id)
    assert {key: line["response"]["status_code"] for key, line in errors.items()} == {
        "row-1": 503,
        "row-2": 400,
        "row-3": 502,
    }
    assert "overloaded" in errors["row-1"]["response"]["body"]["error"]["message"]
    assert [model.asked[f"Question {number}"] for number in range(4)] == [3, 4, 1, 4]


def test_unreachable_upstream_becomes_error_lines() -> None:
    with Emulator(speed=100, upstream="http://127.0.0.1:9", upstream_backoff=0.001) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = finish(client, submit(client, [request(0)]).id)
        assert results(client, batch.error_file_id)["row-0"]["response"]["status_code"] == 502


def test_killed_emulator_does_not_ask_again(model: Model, tmp_path: Path) -> None:
    options = ["--data-dir", str(tmp_path), "--speed", "100", "--upstream", model.url, "--upstream-concurrency", "2"]
    with emulator_process(*options) as process:
        client = process.client()
        batch = submit(client, map(request, range(60)))

        def some_done() -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed >= 10

        wait_until(some_done)
        process.stop(signal.SIGKILL)
    with emulator_process(*options) as process:
        client = process.client()
        ended = finish(client, batch.id)
        assert len(results(client, ended.output_file_id)) == 60
    asked_again = sum(count - 1 for count in model.asked.values())
    assert asked_again <= 2  # at most what was under way
    assert len(model.asked) == 60


def test_cancel_waits_for_what_is_under_way_and_asks_nothing_new(model: Model) -> None:
    model.hold()
    with Emulator(speed=100, upstream=model.url, upstream_concurrency=2) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = submit(client, map(request, range(10)))
        wait_until(lambda: len(model.asked) == 2)
        assert client.batches.cancel(batch.id).status == "cancelling"
        model.release()
        ended = finish(client, batch.id)
        assert (ended.status, len(model.asked)) == ("cancelled", 2)
        assert len(results(client, ended.output_file_id)) == 2
        rest = results(client, ended.error_file_id)
        assert {line["error"]["code"] for line in rest.values()} == {"batch_cancelled"}
        assert len(rest) == 8


def test_window_closes_on_a_slow_upstream(model: Model) -> None:
    model.hold()
    with Emulator(speed=0, upstream=model.url, upstream_concurrency=2) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = submit(client, map(request, range(5)))
        emulator.advance(3)
        wait_until(lambda: len(model.asked) == 2)
        emulator.advance(86_400)
        model.release()
        wait_until(lambda: client.batches.retrieve(batch.id).status == "finalizing")
        emulator.advance(2)
        ended = client.batches.retrieve(batch.id)
        assert (ended.status, len(results(client, ended.output_file_id))) == ("expired", 2)


def test_row_faults_spare_the_upstream(model: Model) -> None:
    fault = {"on": {"custom_id": "row-1"}, "do": {"outcome": "server_error"}}
    with Emulator(speed=100, upstream=model.url, faults=[fault]) as emulator:
        client = OpenAI(base_url=emulator.base_url, api_key="any")
        batch = finish(client, submit(client, map(request, range(3))).id)
        assert results(client, batch.error_file_id).keys() == {"row-1"}
    assert model.asked.keys() == {"Question 0", "Question 2"}
