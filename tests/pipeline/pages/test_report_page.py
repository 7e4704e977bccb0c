"""The report in a real browser: it sorts, sends no request, logs no error to the console and fits a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipeline.storage.folder import Folder
from tests.fixtures import browser, matrix_run
from tests.fixtures.browser import DESKTOP, PHONE


@pytest.fixture(scope="module")
def reported(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A report with several networks and countermeasures; skipped without a browser."""
    return matrix_run.write(tmp_path_factory.mktemp("runs") / "a run with a rather long name of its own", 2, 7)[1]


def address(folder: Folder) -> str:
    return Path(folder.file("report/index.html")).as_uri()


def column(page: Page, table: str, name: str) -> list[str]:
    """Return the text of a column's cells, from top to bottom."""
    heads = [text.strip() for text in page.locator(f"#{table} thead th").all_inner_texts()]
    index = next(i for i, text in enumerate(heads) if text.startswith(name))
    return [text.strip() for text in page.locator(f"#{table} tbody tr > :nth-child({index + 1})").all_inner_texts()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_asks_nobody_says_nothing_wrong_and_fits(chromium: Browser, reported: Folder, width: int, scheme: str) -> None:
    with browser.page(chromium, width, "dark" if scheme == "dark" else "light") as (page, noticed):
        page.goto(address(reported))
        assert browser.overflow(page) == 0
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert browser.overflow(page) == 0
        assert page.locator("picture img").count() >= 8
        assert browser.broken_images(page) == 0
        wide = page.locator("figure img").evaluate_all("images => Math.max(...images.map(image => image.getBoundingClientRect().right))")
        assert wide <= width
        page.locator("#victims").get_by_role("button", name="protected").click()
        assert noticed.requests == [address(reported)]
        assert noticed.errors == []


def test_the_page_is_dark_where_that_is_asked_for_with_pictures_to_match(chromium: Browser, reported: Folder) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        with browser.page(chromium, scheme=scheme) as (page, _):
            page.goto(address(reported))
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            levels = [int(level) for level in background.removeprefix("rgb(").removesuffix(")").split(",")]
            seen[scheme] = sum(levels) / 3, page.locator("#accuracy img").evaluate("image => image.currentSrc")
    assert seen["dark"][0] < 60 < 200 < seen["light"][0]
    assert seen["dark"][1] != seen["light"][1]


def test_a_table_sorts_by_numbers_and_by_names_and_says_so(chromium: Browser, reported: Folder) -> None:
    with browser.page(chromium) as (page, noticed):
        page.goto(address(reported))
        table = page.locator("#victims")
        before = numbers(column(page, "victims", "protected"))
        assert len(before) == 14
        assert before != sorted(before)
        whole = sorted(zip(column(page, "victims", "countermeasure"), column(page, "victims", "victim"), before, strict=True))
        head = table.get_by_role("button", name="protected")
        head.click()
        assert numbers(column(page, "victims", "protected")) == sorted(before)
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("protected")
        head.click()
        assert numbers(column(page, "victims", "protected")) == sorted(before, reverse=True)
        assert table.locator("th[aria-sort]").count() == 1
        table.get_by_role("button", name="countermeasure").click()
        names = column(page, "victims", "countermeasure")
        assert names == sorted(names)
        protected = numbers(column(page, "victims", "protected"))
        assert sorted(zip(names, column(page, "victims", "victim"), protected, strict=True)) == whole  # rows stay whole
        assert noticed.errors == []


def test_a_table_is_sorted_from_the_keyboard_alone(chromium: Browser, reported: Folder) -> None:
    with browser.page(chromium) as (page, _):
        page.goto(address(reported))
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "clean":
                break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        for key, order in (("Enter", False), ("Space", True)):
            page.keyboard.press(key)
            values = numbers(column(page, "victims", "clean"))
            assert values == sorted(values, reverse=order)


@pytest.mark.slow
def test_a_report_of_many_networks_and_countermeasures_fits_a_phone(chromium: Browser, tmp_path: Path) -> None:
    _, folder = matrix_run.write(tmp_path / "run")
    with browser.page(chromium, PHONE) as (page, noticed):
        page.goto(address(folder))
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert browser.overflow(page) == 0
        assert browser.broken_images(page) == 0
        assert page.locator("#victims tbody tr").count() == 100
        assert noticed.errors == []
    assert len(folder.read("report/index.html")) < 8_000_000
