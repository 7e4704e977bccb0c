"""The comparison in a real browser: its tables sort, its links lead to the reports, and it fits a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from pipeline.pages.comparison_page import write
from pipeline.results.comparison import compare
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from tests.fixtures import browser, matrix_run
from tests.fixtures.browser import DESKTOP, PHONE


@pytest.fixture(scope="module")
def address(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page that compares two runs, one of them in a folder with a difficult name."""
    root = tmp_path_factory.mktemp("compared")
    runs = [matrix_run.write(root / name, 2, countermeasures)[1] for name, countermeasures in (("a #1 run?", 4), ("other", 2))]
    to = root / "comparison"
    write(compare([RunResults.read(run) for run in runs]), Folder.open(str(to)), "both")
    return (to / "index.html").as_uri()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_asks_nobody_says_nothing_wrong_and_fits(chromium: Browser, address: str, width: int) -> None:
    with browser.page(chromium, width) as (page, noticed):
        page.goto(address)
        assert browser.overflow(page) == 0
        assert browser.broken_images(page) == 0
        assert noticed.requests == [address]
        assert noticed.errors == []
        texts = page.locator("figure img").evaluate_all("images => images.map(image => image.alt)")
        assert all("%" in text for text in texts)


def test_its_tables_sort(chromium: Browser, address: str) -> None:
    with browser.page(chromium) as (page, _):
        page.goto(address)
        page.locator("#victims").get_by_role("button", name="protected").click()
        cells = page.locator("#victims tbody tr td:nth-child(5)").all_inner_texts()
        numbers = [float(text.split()[0]) for text in cells if text != "–"]
        assert numbers == sorted(numbers)
        assert cells[: len(numbers)] == [text for text in cells if text != "–"]  # what was not measured goes last
        assert len(numbers) == 12


def test_its_links_lead_to_the_reports(chromium: Browser, address: str) -> None:
    with browser.page(chromium) as (page, _):
        page.goto(address)
        assert page.locator("#runs tbody th a").count() == 2
        page.locator("#runs").get_by_role("link", name="a #1 run?").click()
        assert page.locator("h1").inner_text() == "a #1 run?"
        assert Path(page.url.removeprefix("file://")).name == "index.html"
