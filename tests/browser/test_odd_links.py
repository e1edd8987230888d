"""Links that somebody typed, shortened or kept for too long, and a key that may not read files, in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.browser.ui import Page

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect


def test_an_id_that_is_none_is_a_batch_that_is_not_there(
    sign_in: Callable[..., Page], emulator: Emulator, conn_id: str, buy: Callable[..., str]
) -> None:
    real = buy()
    page = sign_in()
    for batch_id in ("a/b", f"{real}/preview", "..", ".", "/", "a b", "\u00fc", "x" * 300):
        page.open(conn_id=conn_id, batch=batch_id)
        expect(page.detail.get_by_role("heading", name="There is no such batch")).to_be_visible()
        page.detail.get_by_role("button", name="Close").click()
        expect(page.detail).to_have_count(0)
        expect(page.row(real)).to_be_visible()


def test_a_place_in_the_list_that_is_not_known_any_more_is_left_for_the_newest(
    sign_in: Callable[..., Page], conn_id: str, buy: Callable[..., str]
) -> None:
    batch_id = buy()
    page = sign_in()
    page.open(conn_id=conn_id, cursor="batch_of_an_old_link")
    expect(page.row(batch_id)).to_be_visible()
    expect(page.button("Back to newest")).to_have_count(0)


def test_a_batch_is_shown_though_its_files_cannot_be_read(
    sign_in: Callable[..., Page], emulator: Emulator, conn_id: str, buy: Callable[..., str]
) -> None:
    batch_id = buy()
    emulator.advance(500)
    no = {"status": 403, "body": {"error": {"message": "Missing scopes: api.files.read <b>"}}}
    emulator.add_fault({"on": {"path": "/files/**"}, "do": no, "times": None})
    page = sign_in()
    page.open(conn_id=conn_id)
    page.show_detail(batch_id)
    expect(page.detail).to_contain_text("3 of 3")
    expect(page.detail).to_contain_text("The files cannot be read with this connection's key.")
    expect(page.detail).to_contain_text("Missing scopes: api.files.read <b>")
    expect(page.detail.get_by_text("not readable", exact=True)).to_have_count(2)
