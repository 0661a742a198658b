"""Ten runs in MLflow's page: the saved view answers which settings brought the most gain."""

import os
from pathlib import Path

import pytest
from support import need
from tracking.server import Server
from tracking.ten_runs import fill

from pipeline.tracking.views import GAINS_NAME, GAINS_VIEW

pytestmark = [pytest.mark.browser, pytest.mark.slow]

_CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
# MLflow opens its assistant, an offer to talk to a language model, over the first page it shows.
_QUIET = (
    "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
    "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"
)
_WAIT_MS = 120_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An address of the page of ten runs, and run name -> gain."""
    root = tmp_path_factory.mktemp("ten")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        _, experiment, gains = fill(root)
    server = Server(root)
    server.start()
    yield f"{server.url}/#/experiments/{experiment}/runs", gains
    server.kill()


@pytest.fixture
def tab():
    from playwright.sync_api import sync_playwright

    need(_CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_CHROMIUM), args=_FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB")
        context.add_init_script(_QUIET)
        context.set_default_timeout(_WAIT_MS)
        yield context.new_page()
        browser.close()


def picture(tab, name):
    """Keep a picture where REPLENISH_PICTURES names a folder: the guide's come from here."""
    folder = os.environ.get("REPLENISH_PICTURES")
    if folder:
        tab.wait_for_timeout(3000)
        tab.screenshot(path=str(Path(folder) / name))


def test_the_table_of_the_saved_view_has_the_ten_runs_by_gain_beside_their_settings(page, tab):
    address, gains = page
    tab.goto(f"{address}?viewStateShareKey={GAINS_VIEW}")
    tab.get_by_text("10 matching runs").wait_for()
    best = sorted(gains, key=gains.__getitem__, reverse=True)
    tab.get_by_text(best[0], exact=True).wait_for()
    where = {name: tab.get_by_text(name, exact=True).bounding_box()["y"] for name in gains}
    shown = sorted(gains, key=where.__getitem__)
    assert [gains[name] for name in shown] == [gains[name] for name in best]
    for column in ("evaluate/gain_points", "synthesize.guidance", "train.steps"):
        assert tab.get_by_role("columnheader", name=column).last.is_visible()
    assert tab.get_by_text("class_weighted", exact=True).count() == 0  # arms are left out
    assert tab.get_by_text(GAINS_NAME[:20]).first.is_visible()
    picture(tab, "mlflow-runs.png")


def test_the_charts_of_the_saved_view_show_gain_against_settings(page, tab):
    address, gains = page
    tab.goto(f"{address}?viewStateShareKey={GAINS_VIEW}&compareRunsMode=CHART")
    tab.get_by_text("Gain and settings").wait_for()
    for title in (
        "Parallel Coordinates",
        "synthesize.guidance vs. evaluate/gain_points",
        "train.steps vs. evaluate/gain_points",
    ):
        tab.get_by_text(title, exact=True).first.wait_for()
    tab.locator("svg .bars .point, svg .barlayer .point").first.wait_for()
    assert tab.locator("svg .barlayer").first.locator(".point").count() == len(gains)
    picture(tab, "mlflow-charts.png")


def test_the_view_stands_in_the_pages_own_list(page, tab):
    address, _ = page
    tab.goto(address)
    tab.get_by_role("button", name="Views").click()
    tab.get_by_text(GAINS_NAME).first.click()
    tab.get_by_text("10 matching runs").wait_for()
    assert f"viewStateShareKey={GAINS_VIEW}" in tab.url
