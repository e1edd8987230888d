"""The page "OpenAI Batches" in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import add_connection, made_by
from tests.browser.ui import ARROW, REFRESH_MS, Page

if TYPE_CHECKING:
    from playwright.sync_api import Route

    from airflow_provider_openai_batches.emulator import Emulator
    from demo.airflow import Airflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

Buy = Callable[..., str]
SignIn = Callable[..., Page]

MARKUP = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>\' " & </td> javascript:alert(1)'
RIGHT_TO_LEFT = "\u202eevil\u202c \u05e9\u05dc\u05d5\u05dd"


def test_lists_batches_newest_first_and_says_who_made_them(
    sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    outside = buy()
    emulator.advance(200)
    ours = buy(**made_by("product_texts"))
    page = sign_in()

    page.open(conn_id=conn_id)

    expect(page.rows).to_have_count(2)
    expect(page.rows.nth(0)).to_contain_text(f"product_texts {ARROW} write")
    expect(page.rows.nth(0)).to_contain_text("shard 0, round 1 · manual__2026-01-01")
    expect(page.row(ours)).to_contain_text("validating")
    expect(page.rows.nth(1)).to_contain_text("outside Airflow")
    expect(page.row(outside)).to_contain_text("completed")
    expect(page.row(outside)).to_contain_text("3 of 3")
    expect(page.row(outside)).to_contain_text("gpt-4o-mini")
    expect(page.row(outside)).to_contain_text("/v1/chat/completions")
    expect(page.row(outside)).to_contain_text(re.compile(r"\$0\.00\d\d"))


def test_filters_stand_in_the_link(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    done = buy(team="search", **made_by("product_texts"))
    emulator.advance(200)
    running = buy(team="search")
    other = buy(team="billing")
    page = sign_in()
    page.open(conn_id=conn_id)
    expect(page.rows).to_have_count(3)

    page.browser.get_by_label("Search").fill("SEARCH")
    expect(page.rows).to_have_count(2)
    page.browser.get_by_label("Status").select_option("active")
    expect(page.rows).to_have_count(1)
    expect(page.row(running)).to_be_visible()

    page.browser.reload()
    expect(page.row(running)).to_be_visible()
    expect(page.rows).to_have_count(1)
    page.browser.get_by_label("Status").select_option("completed")
    page.browser.get_by_label("DAG", exact=True).fill("product_texts")
    expect(page.row(done)).to_be_visible()

    page.browser.get_by_label("DAG", exact=True).fill("no_such_dag")
    expect(page.browser.get_by_role("heading", name="Scanned 3 batches")).to_be_visible()
    page.button("Clear filters").click()
    expect(page.row(other)).to_be_visible()
    expect(page.browser.get_by_label("Search")).to_have_value("")


def test_pages_go_on_where_the_last_one_ended(sign_in: SignIn, conn_id: str, buy: Buy) -> None:
    ids = [buy(1) for _ in range(27)][::-1]
    page = sign_in()
    page.open(conn_id=conn_id)
    expect(page.rows).to_have_count(25)

    page.button("Next").click()
    expect(page.rows).to_have_count(2)
    expect(page.row(ids[-1])).to_be_visible()

    page.button("Back to newest").click()
    expect(page.row(ids[0])).to_be_visible()


def test_the_bar_fills_by_itself(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    batch = buy(40)
    emulator.advance(3)
    page = sign_in()
    page.open(conn_id=conn_id)
    bar = page.row(batch).get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuetext", "0 of 40 done")

    emulator.advance(60)
    page.refresh_until(lambda: bar.get_attribute("aria-valuenow") == "20")
    expect(bar).to_have_attribute("aria-valuemax", "40")

    emulator.advance(120)
    page.refresh_until(lambda: "completed" in page.row(batch).inner_text())
    expect(bar).to_have_attribute("aria-valuetext", "40 of 40 done")


def test_a_hidden_tab_asks_nothing_and_a_slow_answer_is_waited_for(sign_in: SignIn, conn_id: str, buy: Buy) -> None:
    batch = buy()
    page = sign_in()
    page.open(conn_id=conn_id)
    expect(page.row(batch)).to_be_visible()

    page.hide()
    asked = len(page.listings)
    page.browser.clock.run_for(20 * REFRESH_MS)
    assert len(page.listings) == asked

    held: list[Route] = []
    page.browser.route("**/api/batches?*", lambda route: held.append(route), times=1)
    with page.browser.expect_request("**/api/batches?*"):
        page.show()
    page.browser.clock.run_for(4 * REFRESH_MS)
    assert len(page.listings) == asked + 1
    assert len(held) == 1
    with page.browser.expect_response("**/api/batches?*"):
        held[0].continue_()
    with page.browser.expect_request("**/api/batches?*"):
        page.browser.clock.run_for(REFRESH_MS + 1_000)


def test_an_answer_that_is_no_longer_asked_for_is_thrown_away(sign_in: SignIn, conn_id: str, buy: Buy) -> None:
    first, second = buy(team="first"), buy(team="second")
    page = sign_in()
    page.open(conn_id=conn_id)
    expect(page.rows).to_have_count(2)
    held: list[Route] = []
    page.browser.route("**/api/batches?*text=first*", lambda route: held.append(route), times=1)

    with page.browser.expect_request("**/api/batches?*text=first*"):
        page.browser.get_by_label("Search").fill("first")
    page.browser.get_by_label("Search").fill("second")
    expect(page.rows).to_have_count(1)
    held[0].continue_()
    page.browser.evaluate("url => fetch(url).then(answer => answer.text())", held[0].request.url)  # overtakes nobody

    assert page.row(second).is_visible()
    assert page.rows.count() == 1
    assert not page.row(first).is_visible()


def test_cancel_asks_first_and_is_in_the_audit_log(
    sign_in: SignIn, airflow: Airflow, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    batch = buy(40, **made_by("product_texts"))
    emulator.advance(63)
    page = sign_in()
    page.open(conn_id=conn_id)
    page.show_detail(batch)

    page.button("Cancel batch").click()
    keep = page.button("Keep it running")
    expect(keep).to_be_focused()
    for _ in range(3):
        page.browser.keyboard.press("Tab")
        assert page.question.evaluate("dialog => dialog.contains(document.activeElement) || !document.hasFocus()")
    page.browser.keyboard.press("Escape")
    expect(page.question).to_have_count(0)
    expect(page.button("Cancel batch")).to_be_focused()
    assert emulator.batches()[0]["status"] == "in_progress"

    page.button("Cancel batch").click()
    page.question.get_by_role("button", name="Cancel batch").click()
    expect(page.detail).to_contain_text("cancelling")
    expect(page.button("Cancel batch")).to_have_count(0)

    expect(page.detail).to_contain_text("OpenAI is cancelling the batch.")

    emulator.advance(700)
    page.refresh_until(lambda: page.detail.get_by_text("cancelled", exact=True).first.is_visible())
    expect(page.detail).not_to_contain_text("OpenAI is cancelling the batch.")
    page.button("Close").click()
    page.refresh_until(lambda: "cancelled" in page.row(batch).inner_text())
    expect(page.row(batch)).to_contain_text("20 of 40")
    entries = airflow.api("GET", "/eventLogs", params={"event": "openai_batch_cancel"})["event_logs"]
    assert [(entry["owner"], batch in entry["extra"]) for entry in entries] == [("admin", True)]


def test_rows_are_offered_only_where_there_are_some(
    sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    done = buy()
    emulator.advance(200)
    errors = [{"code": "invalid_json_line", "message": "This line is no JSON.", "param": None, "line": 1}]
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
    refused = buy()
    emulator.advance(200)
    page = sign_in()

    page.open(conn_id=conn_id, batch=refused)
    expect(page.detail).to_contain_text("This line is no JSON.")
    expect(page.button("Show the first rows")).to_have_count(0)
    page.open(conn_id=conn_id, batch=done)
    expect(page.button("Show the first rows")).to_be_visible()
    size = page.detail.get_by_text(re.compile(r"^[\d.]+ k?B$")).first
    assert size.evaluate("text => [text.getClientRects().length, getComputedStyle(text).whiteSpace]") == [1, "nowrap"]

    page.button("Delete files").click()
    page.question.get_by_role("button", name="Delete files").click()
    expect(page.detail).to_contain_text("2 files are deleted.")
    expect(page.button("Show the first rows")).to_have_count(0)


def test_a_cost_is_nothing_only_if_it_is_nothing(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    costs = {buy(): cost for cost in (0, 4e-6, 0.00012, 0.1234, 12.345)}
    emulator.advance(200)
    page = sign_in()

    def priced(route: Route) -> None:
        listing = route.fetch().json()
        for batch in listing["batches"]:
            batch["cost_usd"] = costs[batch["id"]]
        route.fulfill(json=listing)

    page.browser.route("**/api/batches?*", priced)
    page.open(conn_id=conn_id)

    expect(page.rows).to_have_count(5)
    column = [page.row(batch).locator("td").nth(7) for batch in costs]
    for cell, shown in zip(column, ["$0", "< $0.0001", "$0.0001", "$0.12", "$12.35"], strict=True):
        expect(cell).to_have_text(shown)


def test_a_connection_that_is_not_there_is_named(sign_in: SignIn, airflow: Airflow) -> None:
    page = sign_in()

    page.open(conn_id="no_such_one")

    alert = page.browser.get_by_role("alert")
    expect(alert.get_by_role("heading", name="There is no such connection")).to_be_visible()
    expect(alert).to_contain_text("No connection has the id no_such_one.")


def test_files_are_deleted_after_a_question(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    batch = buy()
    emulator.advance(200)
    page = sign_in()
    page.open(conn_id=conn_id, batch=batch)

    page.button("Delete files").click()
    expect(page.question).to_contain_text("This cannot be undone.")
    page.question.get_by_role("button", name="Delete files").click()

    expect(page.detail).to_contain_text("2 files are deleted.")
    expect(page.detail.get_by_text("deleted", exact=True)).to_have_count(2)
    expect(page.button("Delete files")).to_have_count(0)
    assert emulator.count("DELETE", "/v1/files/{file_id}") == 2


def test_a_cancel_that_comes_too_late_says_so(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    batch = buy()
    page = sign_in()
    page.open(conn_id=conn_id, batch=batch)
    page.button("Cancel batch").click()
    emulator.advance(200)

    page.question.get_by_role("button", name="Cancel batch").click()

    expect(page.detail).to_contain_text("It was too late: the batch is completed.")
    expect(page.question).to_have_count(0)


def test_an_action_that_fails_says_why_and_can_be_repeated(
    sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    batch = buy()
    page = sign_in()
    page.open(conn_id=conn_id, batch=batch)
    emulator.add_fault({"on": {"method": "POST", "path": "/v1/batches/*/cancel"}, "do": {"status": 403}})
    page.button("Cancel batch").click()

    page.question.get_by_role("button", name="Cancel batch").click()
    expect(page.question.get_by_role("status")).to_contain_text("403")
    page.question.get_by_role("button", name="Cancel batch").click()

    expect(page.detail).to_contain_text("OpenAI is cancelling the batch.")


def test_who_may_not_act_sees_no_action_and_is_refused(
    sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    batch = buy()
    page = sign_in("reader")
    page.open(conn_id=conn_id, batch=batch)
    expect(page.detail).to_contain_text("Timeline")
    expect(page.button("Cancel batch")).to_have_count(0)

    assert _post(page, f"batches/{batch}/cancel", conn_id) == (403, "forbidden")
    assert emulator.count("POST", "/v1/batches/{batch_id}/cancel") == 0


def test_who_may_not_see_the_connection_is_told_so(sign_in: SignIn, conn_id: str, buy: Buy) -> None:
    batch = buy()
    page = sign_in("viewer")

    page.open(conn_id=conn_id)

    expect(page.browser.get_by_role("heading", name="You have no access to this")).to_be_visible()
    expect(page.browser.get_by_role("alert")).to_contain_text("may not see this connection")
    assert _post(page, f"batches/{batch}/cancel", conn_id) == (403, "forbidden")


def test_without_a_connection_the_page_says_how_to_make_one(sign_in: SignIn, emulator: Emulator, conn_id: str) -> None:
    page = sign_in()
    page.browser.route("**/api/connections", lambda route: route.fulfill(json={"connections": [], "default": None}))
    page.open()
    page.browser.reload()
    expect(page.browser.get_by_role("heading", name="No connection to OpenAI")).to_be_visible()
    expect(page.browser.get_by_role("link", name="Go to connections")).to_have_attribute("href", "/connections")

    page.browser.get_by_label("Is it in an environment variable").fill(conn_id)
    page.button("Use it").click()

    expect(page.browser.get_by_role("heading", name="No batches yet")).to_be_visible()


def test_a_wrong_key_is_named_as_such(sign_in: SignIn, airflow: Airflow, emulator: Emulator) -> None:
    add_connection(airflow, emulator, "wrong_key", password="sk-test-wrong-wrong-wrong")
    page = sign_in()

    page.open(conn_id="wrong_key")

    alert = page.browser.get_by_role("alert")
    expect(alert.get_by_role("heading", name="OpenAI refuses this connection's key")).to_be_visible()
    assert "wrong-wrong" not in page.browser.content()


def test_while_the_service_is_down_the_last_data_stay(
    sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy
) -> None:
    batch = buy()
    page = sign_in()
    page.open(conn_id=conn_id)
    expect(page.row(batch)).to_be_visible()

    emulator.add_fault({"on": {"path": "/v1/**"}, "do": {"status": 503}, "times": None})
    notice = page.browser.get_by_text("OpenAI does not answer")
    page.refresh_until(notice.is_visible)
    expect(page.row(batch)).to_be_visible()
    expect(page.browser.get_by_role("status").filter(has=notice)).to_contain_text("This is how things stood at")

    emulator.clear_faults()
    page.button("Try now").click()
    page.refresh_until(lambda: not notice.is_visible())
    expect(page.row(batch)).to_be_visible()


def test_hostile_text_stays_text(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    dag_id = "<b onmouseover=alert(1)>dag</b>"
    rows = [MARKUP, RIGHT_TO_LEFT, "x" * 10_000]
    good = buy(rows, model=MARKUP, note=MARKUP, rtl=RIGHT_TO_LEFT, long="y" * 500, **made_by(dag_id, task_id=MARKUP))
    emulator.advance(200)
    errors = [{"code": MARKUP, "message": MARKUP + "z" * 10_000, "param": RIGHT_TO_LEFT, "line": 7}]
    emulator.add_fault({"on": {"batch": {}}, "do": {"outcome": "failed", "errors": errors}})
    bad = buy(model=MARKUP)
    emulator.advance(200)
    page = sign_in()

    page.open(conn_id=conn_id)
    expect(page.row(good)).to_contain_text(MARKUP)
    expect(page.row(good)).to_contain_text(dag_id)
    page.show_detail(good)
    expect(page.detail.get_by_text(MARKUP, exact=True).first).to_be_visible()
    page.button("Show the first rows").click()
    expect(page.detail.get_by_role("cell", name=MARKUP, exact=True)).to_be_visible()
    expect(page.detail.get_by_role("cell", name="x" * 10_000)).to_be_visible()
    _fits(page)
    page.button("Close").click()
    page.show_detail(bad)
    expect(page.detail.get_by_role("row").filter(has_text=MARKUP)).to_contain_text("z" * 1_800)  # cut, as all of these
    _fits(page)

    foreign = page.browser.locator(".oab img, .oab script, .oab b, .oab [onmouseover], .oab [onerror]")
    expect(foreign).to_have_count(0)
    assert page.browser.evaluate("window.hacked") is None


def test_keys_open_and_close_a_batch(sign_in: SignIn, emulator: Emulator, conn_id: str, buy: Buy) -> None:
    batch = buy()
    page = sign_in()
    page.open(conn_id=conn_id)
    name = page.row(batch).get_by_role("button")

    name.press("Enter")
    expect(page.detail).to_be_visible()
    assert f"batch={batch}" in page.browser.url
    page.browser.keyboard.press("Escape")

    expect(page.detail).to_have_count(0)
    expect(name).to_be_focused()
    assert "batch=" not in page.browser.url


def _post(page: Page, path: str, conn_id: str) -> tuple[int, str]:
    """Call the page's backend from the page."""
    answer: dict[str, Any] = page.browser.evaluate(
        "async url => { let a = await fetch(url, {method: 'POST'}); return [a.status, (await a.json()).detail.code] }",
        f"{page.url}/openai-batches/api/{path}?conn_id={conn_id}",
    )
    status, code = answer
    return status, code


def _fits(page: Page) -> None:
    assert page.browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.detail.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
