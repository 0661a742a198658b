"""The report page in headless Chromium, opened from a file as a reader opens it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_stages import DIGITS, Fake
from playwright.sync_api import expect
from report.fake_verdict import write_all, write_controls
from support import need

from pipeline.params import ReportParams
from pipeline.stages.report import run
from pipeline.tracking.tracker import NullTracker

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    '"x\' onload="alert(3)',
    "\u202eright to left\u2066 {{ 7 * 7 }}",
    "long" * 60,
)
CLASSES = (*HOSTILE, *DIGITS[5:9])
FAKE = Fake(
    classes=CLASSES,
    training=(9, 8, 7, 6, 5, 5, 4, 3, 2),
    accepted=(0, 1, 2, 3, 3, 3, 4, 4, 4),
    rejected=(0, 2, 2, 2, 2, 2, 2, 2, 4),
)
VERDICT: dict[str, Any] = {
    "decision": "use_with_care",
    "reasons": [f"Class {HOSTILE[0]} loses 3.2 points.", HOSTILE[3]],
    "regressed": (0,),
    "looks": (4, 8),
}

# WCAG 2: contrast of every text with what lies under it; large or bold text may have less.
CONTRAST = """() => {
  const rgba = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    throw new Error("no ground");
  };
  const found = { poor: [], texts: 0 };
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    if (!own || node.closest("script") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = rgba(node.closest("svg") ? style.fill : style.color);
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    found.texts += 1;
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5))
      found.poor.push(`${ratio.toFixed(2)} ${node.textContent.trim().slice(0, 40)}`);
  }
  return found;
}"""


@dataclass
class Tab:
    """An open page, and what it asked for and complained of."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def shown(self) -> int:
        """Return how many examples can be seen."""
        return self.page.locator("#all-examples > li:visible").count()

    def told(self) -> str:
        """Return what a screen reader is told."""
        return self.page.locator("#shown").inner_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    folders = write_all(root, FAKE, **VERDICT)
    write_controls(root)
    run(ReportParams(title=HOSTILE[0]), folders, root / "report", NullTracker())
    return root / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    need(CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened(browser: Any, path: Path, width: int = 1280, **options: Any) -> Iterator[Tab]:
    """Open the page; on the way out, ask that it asked for nothing and complained of nothing."""
    viewport = {"width": width, "height": 800}
    context = browser.new_context(viewport=viewport, locale="en-GB", **options)
    try:
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.complaints.append(message.text))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on("dialog", lambda dialog: tab.complaints.append(dialog.message))
        tab.page.on("request", lambda request: tab.asked.append(request.url.split(",")[0]))
        tab.page.goto(path.as_uri())
        yield tab
        assert tab.complaints == []
        assert {url for url in tab.asked if url != "data:image/png;base64"} == {path.as_uri()}
    finally:
        context.close()


def test_filters_narrow_the_gallery_down_and_say_how_many_are_left(browser, written: Path) -> None:
    with opened(browser, written) as tab:
        page = tab.page
        every = tab.shown()
        assert every > 30
        assert tab.told() == f"{every} of {every} shown"
        page.get_by_label("Verdict").select_option("no")
        rejected = tab.shown()
        assert 0 < rejected < every
        assert tab.told() == f"{rejected} of {every} shown"
        page.get_by_label("Reason").select_option("unsure")
        unsure = tab.shown()
        assert 0 < unsure < rejected
        reasons = page.locator("#all-examples > li:visible .why").all_inner_texts()
        assert reasons == ["unsure"] * unsure
        page.get_by_label("Verdict").select_option("yes")  # accepted ones have no such reason
        assert tab.shown() == 0
        assert page.get_by_text("No image here fits all of these filters.").is_visible()
        page.get_by_role("button", name="Show all").click()
        # Not wait_for_function, which evaluates text, and the page's policy forbids that.
        expect(page.locator("#all-examples > [hidden]")).to_have_count(0)
        assert tab.told() == f"{every} of {every} shown"
        page.get_by_label("Class", exact=True).select_option("8")
        names = page.locator("#all-examples > li:visible b").all_inner_texts()
        assert set(names) == {CLASSES[8]}
        assert len(names) == 4 + 4 - 1  # one of the rejected ones is surplus


def test_a_range_of_a_score_is_kept(browser, written: Path) -> None:
    with opened(browser, written) as tab:
        page = tab.page
        values = page.eval_on_selector_all(
            "#all-examples > li", "rows => rows.map(row => Number(row.dataset.confidence))"
        )
        page.get_by_label("Score from").fill("0.7")
        assert tab.shown() == sum(value >= 0.7 for value in values)
        page.get_by_label("Score to").fill("0.8")
        assert tab.shown() == sum(0.7 <= value <= 0.8 for value in values)
        page.get_by_label("Which score").select_option("ratio")
        ratios = page.eval_on_selector_all(
            "#all-examples > li", "rows => rows.map(row => Number(row.dataset.ratio))"
        )
        assert tab.shown() == sum(0.7 <= value <= 0.8 for value in ratios)


def test_the_keyboard_reaches_and_works_the_filters(browser, written: Path) -> None:
    with opened(browser, written) as tab:
        page = tab.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.locator(".skip").bounding_box()["x"] >= 0
        every, met = tab.shown(), []
        for _ in range(80):
            page.keyboard.press("Tab")
            met.append(page.evaluate("document.activeElement.name || ''"))
            if met[-1] == "kept":
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
                assert float(outline.removesuffix("px")) >= 2
                page.keyboard.press("ArrowDown")
                page.keyboard.press("ArrowDown")
            if met[-1] == "most":
                break
        assert [name for name in met if name] == [
            "class",
            "kept",
            "reason",
            "score",
            "least",
            "most",
        ]
        assert page.get_by_label("Verdict").input_value() == "no"
        assert 0 < tab.shown() < every
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        # Not wait_for_function, which evaluates text, and the page's policy forbids that.
        expect(page.locator("#all-examples > [hidden]")).to_have_count(0)
        assert page.locator("#shown").get_attribute("aria-live") == "polite"


def test_hostile_names_are_shown_as_text(browser, written: Path) -> None:
    with opened(browser, written) as tab:
        page = tab.page
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.querySelectorAll('[onload], [onerror]').length") == 0
        whole = page.evaluate("document.body.textContent")
        for name in HOSTILE:
            assert name in whole
        assert page.title() == f"{HOSTILE[0]}: verdict: use with care"
        options = page.locator("#f-class option").all_inner_texts()
        assert options[1] == "</script><img src=x onerror=alert(2)> (3)"
        assert all(len(option) < 70 for option in options)
        page.get_by_label("Class", exact=True).select_option("1")
        assert page.locator("#all-examples > li:visible b").first.inner_text() == HOSTILE[1]
        turned = page.locator("#classes bdi", has_text="right to left").first
        assert turned.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, written: Path, scheme: str) -> None:
    with opened(browser, written, color_scheme=scheme) as tab:
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) == (scheme == "dark")
        found = tab.page.evaluate(CONTRAST)
        assert found["texts"] > 400
        assert found["poor"] == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_tables_scroll_and_the_page_does_not(browser, written: Path, width: int) -> None:
    with opened(browser, written, width) as tab:
        page = tab.page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            ".length"
        )
        assert (wide > 0) == (width < 1280)
        assert page.get_by_role("heading", level=1).is_visible()


def test_every_image_can_be_decoded(browser, written: Path) -> None:
    with opened(browser, written) as tab:
        lazy = tab.page.evaluate(
            "[...document.images].every(i => i.loading === 'lazy' && i.decoding === 'async')"
        )
        assert lazy
        tab.page.evaluate("for (const image of document.images) image.loading = 'eager'")
        tab.page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        sizes = tab.page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert set(sizes) == {8}


def test_without_script_every_image_is_there_and_no_dead_filter(browser, written: Path) -> None:
    with opened(browser, written, java_script_enabled=False) as tab:
        assert tab.page.locator("#filters").is_hidden()
        assert tab.shown() == tab.page.locator("#all-examples > li").count() > 30


def test_on_paper_it_is_light_and_without_filters(browser, written: Path) -> None:
    with opened(browser, written, color_scheme="dark") as tab:
        tab.page.emulate_media(media="print", color_scheme="dark")
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        assert tab.page.locator("#filters").is_hidden()
        assert tab.page.evaluate(CONTRAST)["poor"] == []


def test_no_other_script_can_run(browser, written: Path) -> None:
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(written.as_uri())
        page.evaluate(
            "() => { const s = document.createElement('script');"
            "s.textContent = 'window.ran = true'; document.body.append(s); }"
        )
        assert page.evaluate("window.ran") is None
    finally:
        context.close()


def test_the_page_is_small(written: Path) -> None:
    assert written.stat().st_size < 5_000_000
