from __future__ import annotations

import io
import itertools
import threading
import time
from typing import Any

import pytest

from airflow_provider_openai_batches.api.client import BatchClient
from airflow_provider_openai_batches.api.create import IDEMPOTENCY_KEY
from airflow_provider_openai_batches.api.errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    CreateOutcomeUnknownError,
    InvalidInputError,
    InvalidResponseError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitError,
    ServerError,
)
from airflow_provider_openai_batches.emulator import Emulator
from tests.api.connecting import closed_port, connect
from tests.api.scripted_server import RESET, Answer, Request, ScriptedServer, as_json

CHAT = "/v1/chat/completions"
SKEW_S = 300
SETTLE_S = 2.0

ON_CREATE = {"method": "POST", "path": "/v1/batches"}
ON_LIST = {"method": "GET", "path": "/v1/batches"}

SALE = True
NO_SALE = False
HTML = Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})


class Shop:
    """Sells batches, remembers each, and answers as planned: (whether it sells, what it answers) per POST.

    After the plan it sells and says so. ``lists`` are planned answers to the listing, before it lists truly.
    """

    def __init__(self, *plan: tuple[bool, Answer], lists: tuple[Answer, ...] = ()) -> None:
        self.sold: list[dict[str, Any]] = []
        self.plan, self.lists = iter(plan), iter(lists)

    def __call__(self, request: Request) -> Answer:
        if request.method == "GET":
            return next(self.lists, None) or as_json({"data": self.sold[::-1], "has_more": False})
        sells, answer = next(self.plan, (SALE, None))
        if sells:
            number = len(self.sold) + 1
            self.sold.append(
                {"id": f"batch_{number}", "status": "validating", "created_at": int(time.time()), **request.json}
            )
        return answer or as_json(self.sold[-1])


def open_shop(shop: Shop) -> ScriptedServer:
    return ScriptedServer(endless=itertools.repeat(shop))


@pytest.fixture
def file_id(client: BatchClient, input_file: bytes) -> str:
    return client.upload_file(lambda: io.BytesIO(input_file), filename="rows.jsonl").id


def creates(emulator: Emulator) -> int:
    return emulator.count("POST", "/v1/batches")


def test_a_create_buys_one_batch(emulator: Emulator, client: BatchClient, file_id: str, pauses: list[float]) -> None:
    batch = client.create_batch(
        file_id, CHAT, metadata={"team": "search"}, output_expires_after=3_600, idempotency_token="token-1"
    )
    assert [shown["id"] for shown in emulator.batches()] == [batch.id]
    assert (batch.status, batch.input_file_id, batch.endpoint) == ("validating", file_id, CHAT)
    assert batch.metadata == {"team": "search", IDEMPOTENCY_KEY: "token-1"}
    assert pauses == []


def test_the_body_of_a_create_is_what_the_api_documents() -> None:
    with open_shop(Shop()) as server, connect(server.base_url) as client:
        client.create_batch("file-1", CHAT, completion_window="7d", output_expires_after=3_600, idempotency_token="t")
        client.create_batch("file-1", CHAT)
    full, least = (request.json for request in server.requests)
    assert full == {
        "input_file_id": "file-1",
        "endpoint": CHAT,
        "completion_window": "7d",
        "metadata": {IDEMPOTENCY_KEY: "t"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3_600},
    }
    assert least.keys() == {"input_file_id", "endpoint", "completion_window", "metadata"}
    assert least["completion_window"] == "24h"


def test_every_create_has_a_token_of_its_own(client: BatchClient, file_id: str) -> None:
    tokens = {client.create_batch(file_id, CHAT).metadata[IDEMPOTENCY_KEY] for _ in range(3)}
    assert len(tokens) == 3


def test_an_unknown_endpoint_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    with open_shop(Shop()) as server, connect(server.base_url) as client:
        assert client.create_batch("file-1", "/v1/rerank").endpoint == "/v1/rerank"
    assert "/v1/rerank" in caplog.text


@pytest.mark.parametrize(
    ("param", "arguments"),
    [
        ("input_file_id", {"input_file_id": ""}),
        ("input_file_id", {"input_file_id": None}),
        ("endpoint", {"endpoint": "v1/chat/completions"}),
        ("completion_window", {"completion_window": "tomorrow"}),
        ("metadata", {"metadata": {"tags": ["a"]}}),
        ("metadata", {"metadata": {str(index): "" for index in range(16)}}),
        ("metadata", {"idempotency_token": "t" * 513}),
        ("metadata", {"idempotency_token": 7}),
        ("output_expires_after", {"output_expires_after": 60}),
    ],
)
def test_bad_input_is_refused_before_any_call(
    emulator: Emulator, client: BatchClient, param: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        client.create_batch(**{"input_file_id": "file-1", "endpoint": CHAT, **arguments})
    assert raised.value.param == param
    assert emulator.calls == []


# --- the answer is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["before", "after"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_dropped_create_buys_one_batch(
    emulator: Emulator, client: BatchClient, file_id: str, drop: str, times: int
) -> None:
    emulator.add_fault({"on": ON_CREATE, "do": {"drop": drop}, "times": times})
    batch = client.create_batch(file_id, CHAT)
    assert [shown["id"] for shown in emulator.batches()] == [batch.id]


def test_a_lost_answer_is_looked_for_not_repeated(
    emulator: Emulator, client: BatchClient, file_id: str, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    emulator.add_fault({"on": ON_CREATE, "do": {"drop": "after"}})
    batch = client.create_batch(file_id, CHAT)
    assert creates(emulator) == 1
    assert emulator.count("GET", "/v1/batches") == 1
    assert SETTLE_S in pauses
    assert f"batch {batch.id} had been created" in caplog.text


PLANS: dict[str, list[tuple[bool, Answer]]] = {
    "answer lost": [(SALE, RESET)],
    "request lost": [(NO_SALE, RESET)],
    "two requests lost": [(NO_SALE, RESET), (NO_SALE, RESET)],
    "request, then answer lost": [(NO_SALE, RESET), (SALE, RESET)],
    "answer cut": [(SALE, Answer(200, b'{"id": "batch_1"}', cut_at=9))],
    "5xx after the sale": [(SALE, as_json({"error": {"message": "oops"}}, 500))],
    "5xx without a sale": [(NO_SALE, as_json({"error": {"message": "oops"}}, 500))],
    "HTML 502 after the sale": [(SALE, Answer(502, b"<h1>Bad Gateway</h1>"))],
    "HTML 504 without a sale": [(NO_SALE, Answer(504, b"<h1>Timeout</h1>"))],
    "HTML 200 after the sale": [(SALE, HTML)],
    "no id after the sale": [(SALE, as_json({}))],
    "nonsense after the sale": [(SALE, as_json([1]))],
    "408 after the sale": [(SALE, Answer(408))],
    "429 without a sale": [(NO_SALE, as_json({"error": {"message": "slow down"}}, 429))],
    "429, then answer lost": [(NO_SALE, Answer(429)), (SALE, RESET)],
    "only the last of five sells, answer lost": [*[(NO_SALE, RESET)] * 4, (SALE, RESET)],
    "5xx after the sale, do not retry": [(SALE, as_json({}, 500, x_should_retry="false"))],
    "5xx after the sale, retry in an hour": [(SALE, as_json({}, 503, retry_after="3600"))],
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_whatever_happens_to_the_answer_one_batch_is_bought(plan: list[tuple[bool, Answer]]) -> None:
    shop, pauses = Shop(*plan), list[float]()
    with open_shop(shop) as server, connect(server.base_url, pauses) as client:
        batch = client.create_batch("file-1", CHAT)
    assert [sold["id"] for sold in shop.sold] == [batch.id]
    assert max(pauses, default=0) < 60


def test_a_create_that_times_out_buys_one_batch() -> None:
    over = threading.Event()

    def too_late(request: Request) -> Answer:
        over.wait()
        return RESET

    shop = Shop()
    with ScriptedServer(too_late, endless=itertools.repeat(shop)) as server:
        with connect(server.base_url, timeout_s=0.3) as client:
            client.create_batch("file-1", CHAT)
        over.set()
    assert len(shop.sold) == 1


def test_a_create_that_is_carried_out_after_the_timeout_is_waited_for() -> None:
    over, shop, looks = threading.Event(), Shop(), itertools.count(1)

    def too_late(request: Request) -> Answer:
        over.wait()
        return RESET

    def late_sale(request: Request) -> Answer:
        if request.method == "GET" and next(looks) == 3:
            shop(server.requests[0])  # Only now the service comes to the first create.
        return shop(request)

    with ScriptedServer(too_late, endless=itertools.repeat(late_sale)) as server:
        with connect(server.base_url, timeout_s=0.3) as client:
            batch = client.create_batch("file-1", CHAT)
        over.set()
    assert [sold["id"] for sold in shop.sold] == [batch.id]
    assert [request.method for request in server.requests] == ["POST", "GET", "GET", "GET"]


def test_a_create_carried_out_after_all_leaves_one_batch_and_it_is_the_older(caplog: pytest.LogCaptureFixture) -> None:
    sold: list[dict[str, Any]] = []

    def late(request: Request) -> Answer:
        if request.path.endswith("/cancel"):
            [twin] = (batch for batch in sold if batch["id"] in request.path)
            twin["status"] = "cancelling"
            return as_json(twin)
        if request.method == "GET":
            return as_json({"data": sold[::-1], "has_more": False})
        if len(server.calls("POST")) == 1:
            return RESET
        # The first create comes through together with the second.
        sold.extend(
            {"id": f"batch_{number}", "status": "validating", "created_at": int(time.time()), **request.json}
            for number in (1, 2)
        )
        return as_json(sold[-1])

    with ScriptedServer(endless=itertools.repeat(late)) as server, connect(server.base_url) as client:
        assert client.create_batch("file-1", CHAT).id == "batch_1"
    assert [batch["status"] for batch in sold] == ["validating", "cancelling"]
    assert "batch_2 was created beside batch_1" in caplog.text.replace("Batch ", "")


@pytest.mark.parametrize("headers", [{"x_should_retry": "false"}, {"retry_after": "3600"}])
def test_a_server_that_forbids_a_retry_is_only_asked_what_became_of_the_create(headers: dict[str, str]) -> None:
    shop, pauses = Shop((NO_SALE, as_json({}, 503, **headers))), list[float]()
    with open_shop(shop) as server, connect(server.base_url, pauses) as client, pytest.raises(ServerError):
        client.create_batch("file-1", CHAT)
    assert [request.method for request in server.requests] == ["POST", "GET"]
    assert pauses == [SETTLE_S]
    assert shop.sold == []


def test_when_every_attempt_fails_the_last_error_is_raised_and_nothing_is_bought() -> None:
    shop = Shop(*[(NO_SALE, Answer(500))] * 9)
    with open_shop(shop) as server, connect(server.base_url) as client, pytest.raises(ServerError):
        client.create_batch("file-1", CHAT)
    # Between any two creates, and after the last one, the batches were listed.
    assert [request.method for request in server.requests] == ["POST", "GET"] * 5
    assert shop.sold == []


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", BadRequestError),
        (401, "invalid_api_key", AuthenticationError),
        (429, "insufficient_quota", QuotaExhaustedError),
        (429, "token_limit_exceeded", QueueFullError),
        (400, "token_limit_exceeded", QueueFullError),
    ],
)
def test_a_clear_refusal_is_raised_at_once(status: int, code: str, kind: type[APIStatusError]) -> None:
    shop = Shop((NO_SALE, as_json({"error": {"message": "no", "code": code}}, status)))
    with open_shop(shop) as server, connect(server.base_url) as client, pytest.raises(kind) as raised:
        client.create_batch("file-1", CHAT)
    assert len(server.requests) == 1
    assert not raised.value.maybe_applied


def test_a_rate_limit_that_outlasts_the_patience_is_raised_without_a_scan() -> None:
    shop = Shop((NO_SALE, as_json({}, 429, retry_after="600")))
    with open_shop(shop) as server, connect(server.base_url) as client, pytest.raises(RateLimitError) as raised:
        client.create_batch("file-1", CHAT)
    assert len(server.requests) == 1
    assert raised.value.retry_after_s == 600


def test_a_service_that_cannot_be_reached_is_no_lost_answer(pauses: list[float]) -> None:
    with connect(closed_port(), pauses) as client, pytest.raises(APIConnectionError) as raised:
        client.create_batch("file-1", CHAT)
    assert not raised.value.maybe_applied
    assert SETTLE_S not in pauses
    assert "Check the connection's host" in str(raised.value)


def test_a_redirected_create_is_no_lost_answer() -> None:
    elsewhere = Answer(308, headers={"Location": "https://other.example/v1/batches"})
    with (
        ScriptedServer(elsewhere) as server,
        connect(server.base_url) as client,
        pytest.raises(InvalidResponseError) as raised,
    ):
        client.create_batch("file-1", CHAT)
    assert not raised.value.maybe_applied
    assert "https://other.example/v1/batches" in str(raised.value)
    assert len(server.requests) == 1


# --- and cannot be found out ------------------------------------------------------------------------------------------


def test_an_unknown_outcome_names_the_token_by_which_to_look(
    emulator: Emulator, client: BatchClient, file_id: str
) -> None:
    emulator.add_fault({"on": ON_CREATE, "do": {"drop": "after"}})
    emulator.add_fault({"on": ON_LIST, "do": {"status": 500}, "times": None})
    started = time.time()
    with pytest.raises(CreateOutcomeUnknownError, match=r"find_batch\('token-1'") as raised:
        client.create_batch(file_id, CHAT, idempotency_token="token-1")
    assert raised.value.transient
    assert raised.value.maybe_applied
    assert creates(emulator) == 1
    emulator.clear_faults()
    found = client.find_batch("token-1", created_after=started)
    assert found is not None
    assert [shown["id"] for shown in emulator.batches()] == [found.id]


def test_a_listing_that_recovers_settles_the_outcome() -> None:
    shop = Shop((SALE, RESET), lists=(Answer(500),) * 7)
    with open_shop(shop) as server, connect(server.base_url) as client:
        assert client.create_batch("file-1", CHAT).id == "batch_1"
    assert len(shop.sold) == 1


def test_an_unknown_outcome_is_permanent_if_listing_needs_a_person() -> None:
    shop = Shop((SALE, RESET), lists=(as_json({"error": {"message": "revoked"}}, 401),) * 9)
    with (
        open_shop(shop) as server,
        connect(server.base_url) as client,
        pytest.raises(CreateOutcomeUnknownError, match="revoked") as raised,
    ):
        client.create_batch("file-1", CHAT)
    assert not raised.value.transient
    assert len(server.requests) == 2


# --- the scan ---------------------------------------------------------------------------------------------------------


def history(*batches: dict[str, Any]) -> ScriptedServer:
    """A server with these batches, newest first, one per page."""

    def page(request: Request) -> Answer:
        ids = [batch["id"] for batch in batches]
        start = ids.index(request.query["after"]) + 1 if "after" in request.query else 0
        return as_json({"data": batches[start : start + 1], "has_more": start + 1 < len(batches)})

    return ScriptedServer(endless=itertools.repeat(page))


def made(batch_id: str, at: int | None, token: str = "other", status: str = "completed") -> dict[str, Any]:
    return {"id": batch_id, "created_at": at, "status": status, "metadata": {IDEMPOTENCY_KEY: token}}


def test_a_scan_stops_at_the_intents_time() -> None:
    old = [made(f"old_{index}", 10_000 - SKEW_S - 1 - index, "mine") for index in range(3)]
    with history(made("new", 10_001), *old) as server, connect(server.base_url) as client:
        assert client.find_batch("mine", created_after=10_000) is None
    assert len(server.requests) == 2


def test_a_scan_goes_on_for_as_many_pages_as_it_takes() -> None:
    newer = [made(f"new_{index}", 10_100) for index in range(30)]
    with history(*newer, made("ours", 10_000, "mine")) as server, connect(server.base_url) as client:
        found = client.find_batch("mine", created_after=10_000)
    assert found is not None
    assert found.id == "ours"


def test_a_scan_allows_for_clocks_that_differ() -> None:
    with history(made("ours", 10_000 - SKEW_S, "mine")) as server, connect(server.base_url) as client:
        assert client.find_batch("mine", created_after=10_000) is not None


def test_a_scan_reads_its_first_page_however_far_apart_the_clocks_are() -> None:
    with history(made("ours", 10_000, "mine")) as server, connect(server.base_url) as client:
        assert client.find_batch("mine", created_after=10_000 + 7_200) is not None


def test_a_scan_is_not_stopped_by_a_batch_without_a_time() -> None:
    with history(made("odd", None), made("ours", 10_000, "mine")) as server, connect(server.base_url) as client:
        assert client.find_batch("mine", created_after=10_000) is not None


def test_a_batch_that_lives_is_preferred_to_a_newer_failed_one() -> None:
    batches = [
        made("failed_later", 10_002, "mine", "failed"),
        made("failed", 10_001, "mine", "failed"),
        made("lives", 10_000, "mine", "in_progress"),
    ]
    with history(*batches) as server, connect(server.base_url) as client:
        found = client.find_batch("mine", created_after=10_000)
    assert found is not None
    assert found.id == "lives"
    with history(*batches[:2]) as server, connect(server.base_url) as client:
        found = client.find_batch("mine", created_after=10_000)
    assert found is not None
    assert found.id == "failed_later"


def test_a_scan_tolerates_batches_without_metadata() -> None:
    odd = [{"id": "a", "created_at": 10_001, "metadata": None}, {"id": "b", "created_at": 10_001}]
    with history(*odd) as server, connect(server.base_url) as client:
        assert client.find_batch("mine", created_after=10_000) is None
