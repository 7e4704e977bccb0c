"""A real browser without a window, which the tests of pages drive, and what it noticed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = 1280, 390  # pixels wide


@dataclass
class Noticed:
    """What happened on a page."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def error(self, error: Error) -> None:
        self.errors.append(str(error))

    def request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; where there is none, the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine, so that pages cannot be opened")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page(browser: Browser, width: int = DESKTOP, scheme: Literal["light", "dark"] = "light") -> Iterator[tuple[Page, Noticed]]:
    """An empty page of its own profile, so many pixels wide, and what is noticed on it."""
    opened = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, device_scale_factor=2 if width == PHONE else 1)
    noticed = Noticed()
    opened.on("console", noticed.console)
    opened.on("pageerror", noticed.error)
    opened.on("request", noticed.request)
    try:
        yield opened, noticed
    finally:
        opened.close()


def overflow(opened: Page) -> int:
    """By how many pixels the page is wider than the window."""
    return int(opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def broken_images(opened: Page) -> int:
    """How many images are not drawn."""
    return int(opened.evaluate("[...document.images].filter(image => !(image.complete && image.naturalWidth)).length"))
