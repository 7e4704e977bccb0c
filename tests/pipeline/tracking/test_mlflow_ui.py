"""MLflow's own pages in a real browser: the experiment is listed, its run opens to its children, and a picture is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from pipeline.config.schema import STAGES
from pipeline.pages.canvas import DPI, WIDTH
from pipeline.results.mlflow_address import runs_path
from pipeline.results.run_results import RunResults
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import browser, finished_run, mlflow_server

pytestmark = pytest.mark.slow

NAME = "a first run"
PATIENCE = 60_000  # milliseconds; the pages are large, and the machine may be busy


@pytest.fixture(scope="module")
def tracked(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run with all stages, its report, and its log in MLflow."""
    path = tmp_path_factory.mktemp("runs") / NAME
    config, folder = finished_run.write(path)
    report.execute(config, folder)
    tracker = open_tracker(config, folder)
    for stage in STAGES:
        tracker.log_stage(stage, RunResults.read(folder))
    tracker.close("FINISHED")
    return folder


@pytest.fixture(scope="module")
def address(tracked: Folder) -> Iterator[str]:
    """The address of a server that shows the database."""
    with mlflow_server.served(Path(tracked.file("mlflow.db"))) as served:
        yield served


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    """A browser page with long timeouts."""
    with browser.page(chromium) as (opened, _):
        opened.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield opened


def open_runs(page: Page, address: str) -> Locator:
    """Return the row of the only release among the runs, by the path that `make ui` and the end of a run name."""
    page.goto(address + "/" + runs_path("1"), wait_until="domcontentloaded")
    row = page.locator(".ag-row", has=page.get_by_role("link", name=NAME))
    expect(row).to_be_visible()
    return row


def test_the_experiment_is_listed_with_its_description(page: Page, address: str) -> None:
    page.goto(f"{address}/#/experiments", wait_until="domcontentloaded")
    expect(page.get_by_role("link", name=NAME)).to_be_visible()
    expect(page.get_by_role("cell", name="Does the protection hold?")).to_be_visible()


def test_the_table_has_our_columns_and_the_charts_answer(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 1400, "height": 844})
    open_runs(page, address)
    page.get_by_label("Close").last.click()  # of MLflow's assistant, which is open at a first visit
    for name in ("method", "budget", "clean_accuracy", "protected_accuracy", "protected_relabelled_accuracy", "psnr_db"):
        expect(page.get_by_role("columnheader", name=name, exact=True).first).to_be_in_viewport(ratio=1)
    for shown in ("sep-fa", "8/255"):
        expect(page.get_by_role("gridcell", name=shown, exact=True)).to_be_visible()
    page.goto(f"{address}/{runs_path('1')}&compareRunsMode=CHART")
    expect(page.get_by_text("Does the protection hold?", exact=False).last).to_be_visible()
    expect(page.get_by_text("clean_accuracy vs protected_accuracy vs protected_relabelled_accuracy")).to_be_visible()


def test_the_answer_is_two_clicks_from_the_root(page: Page, address: str) -> None:
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_role("link", name=NAME).first.click()
    page.get_by_role("button", name="Got it").click()  # which MLflow asks of a browser once
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Does the protection hold?").click()
    expect(opened.value).to_have_url(re.compile("viewStateShareKey=protection"))
    expect(opened.value.get_by_role("columnheader", name="protected_accuracy", exact=True).first).to_be_visible()


def test_the_run_opens_to_its_children(page: Page, address: str) -> None:
    row = open_runs(page, address)
    names = [f"none · {data} · resnet8 · seed {seed}" for data in ("clean", "protected") for seed in (0, 1)]
    children = [page.get_by_role("link", name=name, exact=True) for name in (*names, "surrogate", "protect")]
    for child in children:
        expect(child).to_have_count(0)
    row.locator("[col-id*='Run Name'] button").first.click()
    for child in children:
        expect(child).to_be_visible()


def test_the_run_says_what_came_out_and_shows_its_pictures(page: Page, address: str) -> None:
    open_runs(page, address).get_by_role("link", name=NAME).click()
    expect(page.get_by_text("Trained on the clean images").first).to_be_visible()
    expect(page.get_by_text("protected_accuracy", exact=True).first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).first.click()
    page.get_by_text("samples.png", exact=True).first.click()
    drawn = f"image => image.complete && image.naturalWidth === {round(WIDTH * DPI)}"
    page.wait_for_function(f"[...document.images].some({drawn})")
