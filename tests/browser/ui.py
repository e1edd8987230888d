"""What the browser tests do to a page and ask of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Request
    from playwright.sync_api import Page as BrowserPage

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
REFRESH_MS = 10_000
DEADLINE_S = 20.0
ARROW = "\u203a"
"""Stands between DAG and task."""


class Page:
    """One tab in front of Airflow.

    :param browser: playwright's page
    :param url: Airflow's
    """

    def __init__(self, browser: BrowserPage, url: str) -> None:
        self.browser = browser
        self.url = url
        self.failures: list[str] = []
        self.listings: list[str] = []
        browser.on("pageerror", lambda error: self.failures.append(str(error)))
        browser.on("request", self._note)

    def _note(self, request: Request) -> None:
        if "/openai-batches/api/batches?" in request.url:
            self.listings.append(request.url)

    def open(self, **query: str) -> None:
        """Go to the page "OpenAI Batches", as a link within Airflow's UI does."""
        self.go(f"/plugin/openai-batches?{urlencode(query)}")

    def go(self, path: str) -> None:
        """Go to a place in Airflow's UI."""
        if not self.browser.url.startswith(self.url):
            self.browser.goto(self.url + path)
            return
        self.browser.evaluate(
            "path => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')) }", path
        )

    def leave(self) -> list[str]:
        """Go where nothing asks for batches; return what went wrong in scripts meanwhile."""
        self.browser.unroute_all()
        self.show()
        self.go("/connections")
        failures, self.failures = self.failures, []
        return failures

    @property
    def rows(self) -> Locator:
        """The rows of the list."""
        return self.browser.locator("main.oab tbody tr")

    def row(self, batch_id: str) -> Locator:
        """The row of one batch."""
        return self.rows.filter(has=self.browser.get_by_title(batch_id, exact=True))

    @property
    def detail(self) -> Locator:
        """The open panel of one batch."""
        return self.browser.locator("dialog.oab-drawer")

    @property
    def question(self) -> Locator:
        """The open question before an action."""
        return self.browser.get_by_role("alertdialog")

    def button(self, name: str) -> Locator:
        """A button by its words."""
        return self.browser.get_by_role("button", name=name, exact=True)

    def show_detail(self, batch_id: str) -> None:
        """Click on a batch's id."""
        self.row(batch_id).get_by_title(batch_id, exact=True).click()

    def refresh_until(self, holds: Callable[[], Any]) -> None:
        """Let the page's time pass until its refreshing has brought something about."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, "the page has not come to show it"
            self.browser.clock.run_for(REFRESH_MS)

    def hide(self) -> None:
        """What a browser tells a page whose tab goes to the background."""
        self._set_hidden("true")

    def show(self) -> None:
        """The tab comes to the front."""
        self._set_hidden("false")

    def _set_hidden(self, hidden: str) -> None:
        self.browser.evaluate(
            f"Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {hidden}}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    def picture(self, name: str) -> None:
        """Save what is to be seen for the documentation, if SCREENSHOTS=1."""
        if os.environ.get("SCREENSHOTS") == "1":
            IMAGES.mkdir(exist_ok=True)
            self.browser.mouse.move(0, 0)
            self.browser.screenshot(path=IMAGES / f"{name}.png", animations="disabled")

    def colours(self) -> dict[str, Any]:
        """The page's background, and the contrast of each text to what is behind it: [[text, ratio], ...]."""
        return self.browser.evaluate(_COLOURS)


_COLOURS = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const colour = rgba(getComputedStyle(element).backgroundColor);
    if (colour[3] === 1) return colour.slice(0, 3);
    return over(colour, element.matches("dialog") ? [0, 0, 0] : behind(element.parentElement));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (element, colour) => {
    const back = behind(element);
    const [low, high] = [luminance(back), luminance(over(rgba(colour), back))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [];
  for (const root of document.querySelectorAll(".oab")) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const other = element.closest(".oab") !== root || element.closest(".oab-hidden, option");
      const shown = element.checkVisibility() && !other;
      if (shown) texts.push([walker.currentNode.data, ratio(element, getComputedStyle(element).color)]);
    }
    for (const input of root.querySelectorAll("input, select")) {
      texts.push([input.getAttribute("aria-label"), ratio(input, getComputedStyle(input).color)]);
      const placeholder = getComputedStyle(input, "::placeholder").color;
      if (input.placeholder) texts.push([input.placeholder, ratio(input, placeholder)]);
    }
  }
  return { background: behind(document.querySelector(".oab")), texts };
}"""
