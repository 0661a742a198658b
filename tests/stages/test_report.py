import base64
import hashlib
import json
import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_stages import BASE, Fake, finish
from report.fake_verdict import (
    write_all,
    write_controls,
    write_findings,
)

from pipeline.errors import StageError
from pipeline.folders import write_bytes, write_json
from pipeline.params import AssembleParams, Params, ReportParams
from pipeline.report import page as page_module
from pipeline.stages.assemble import run as assemble
from pipeline.stages.report import run
from pipeline.tracking.tracker import NullTracker

HOSTILE = ("<script>alert(1)</script>", 'x" onload="alert(2)', "long " * 60)
_VOID = {"meta", "img", "br", "link", "input", "hr"}


def write_page(root: Path, fake: Fake | None = None, tracker=None, verdict=None, **changes) -> Path:
    folders = write_all(root, fake, **(verdict or {}))
    summary = run(ReportParams(**changes), folders, root / "report", tracker or NullTracker())
    path = root / "report" / "index.html"
    assert summary.bytes == path.stat().st_size
    return path


class Page(HTMLParser):
    """The tags of a page, its text, and whether they nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def sections(page: Page) -> list[str | None]:
    return [attributes["id"] for attributes in page.all("section")]


def test_the_page_tells_the_verdict_first(tmp_path: Path, recording_tracker) -> None:
    path = write_page(tmp_path, tracker=recording_tracker)
    page = Page(path)
    text = " ".join(page.text.split())
    assert "Use the synthetic images: The best way to use them (mixed_50) changed" in text
    assert text.index("Use the synthetic images: ") < text.index("Every arm")
    assert sections(page) == [
        "arms",
        "classes",
        "worth",
        "power",
        "robustness",
        "meaning",
        "training",
        "acceptance",
        "images",
        "examples",
        "data",
        "settings",
    ]
    anchors = [(a["href"] or "")[1:] for a in page.all("a")]
    assert [anchor for anchor in anchors if anchor != "verdict"] == sections(page)
    calls = [call for call in recording_tracker.progress_calls if call[0] == "report"]
    assert calls == [("report", done, 4, "steps") for done in range(5)]


def test_the_page_asks_nothing_of_a_network_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    path = write_page(tmp_path)
    page = Page(path)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy is not None
    (script,) = re.findall(r"<script>(.*?)</script>", path.read_text(encoding="utf-8"), re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert page.all("script") == [{}]
    for word in ("innerHTML", "insertAdjacent", "document.write", "eval(", "fetch(", "http"):
        assert word not in script
    assert not page.all("link")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), value
    styles = re.findall(r"<style>(.*?)</style>", (tmp_path / "report/index.html").read_text(), re.S)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_the_page_is_accessible(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path))
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    images = page.all("img")
    assert len(images) > 20
    assert all("alt" in attributes for attributes in images)
    scopes = {"col", "row", "colgroup"}
    assert all(attributes.get("scope") in scopes for attributes in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption")) > 8
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {(a["href"] or "")[1:] for a in page.all("a")}
    assert targets <= ids.keys()


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = write_page(tmp_path / "one"), write_page(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert str(tmp_path) not in one.read_text()


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path, Fake(classes=HOSTILE), title="<b>&amp;"))
    assert page.all("script") == [{}]
    assert not any("onload" in attributes for _, attributes in page.tags)
    for name in HOSTILE:
        assert name in page.text
    assert "<b>&amp;" in page.text


def test_a_no_without_synthetic_images_is_a_whole_page(tmp_path: Path) -> None:
    fake = Fake(decision="do_not_use", accepted=(0, 0, 0), rejected=None, gain=(0.0, 0.0, 0.0))
    text = " ".join(Page(write_page(tmp_path, fake)).text.split())
    assert "Verdict: do not use" in text
    assert "No synthetic image was accepted" in text
    assert "No rejected image to show." in text
    assert "lies above zero" not in text


def test_an_interval_across_zero_is_called_so(tmp_path: Path) -> None:
    fake = Fake(decision="do_not_use", gain=(0.4, -0.5, 1.3))
    text = " ".join(Page(write_page(tmp_path, fake)).text.split())
    assert "does not lie wholly above zero: a gain is not shown" in text
    assert "lies above zero" not in text


def test_the_gain_over_the_same_training_without_them_is_told(tmp_path: Path) -> None:
    fake = Fake(decision="do_not_use", gain=(0.4, -0.5, 1.3))
    text = " ".join(Page(write_page(tmp_path, fake)).text.split())
    told_gain = "the same training without them+0.65 points+0.00 to +1.80"
    assert f"Gain over real_augmented, {told_gain}" in text


def test_care_is_asked_for_with_its_reasons(tmp_path: Path) -> None:
    reasons = ["Class digit 0 loses 3.2 points of recall.", "<b>Few</b> test images."]
    verdict = {"decision": "use_with_care", "reasons": reasons, "regressed": (0,)}
    path = write_page(tmp_path, verdict=verdict)
    text = " ".join(Page(path).text.split())
    assert "Verdict: use with care" in text
    assert "so the gain is shown; the reasons given ask for care" in text
    assert "Why care is needed Class digit 0 loses 3.2 points of recall." in text
    assert "<b>Few</b> test images." in text
    classes = told(path, "classes")
    assert "One class gets worse: digit 0" in classes
    assert "digit 0 worse 6" in classes
    calm = told(write_page(tmp_path / "calm"), "classes")
    assert "No class gets worse by more than the margin." in calm


def test_every_arm_is_told_with_all_its_scores_and_settings(tmp_path: Path) -> None:
    path = write_page(tmp_path)
    text = told(path, "arms")
    assert "mixed_50 best synthetic 50 % of draws synthetic +3.10 +0.73 to +5.47" in text
    assert "AUROC Calibration error Corrupted Settings found" in text
    assert "Worst group" not in text  # no arm has groups
    focal = text[text.index("focal focal loss") :]
    assert focal.startswith("focal focal loss: hard images weigh more \u22122.90")
    assert "gamma 2 learning rate 0.003" in focal
    assert "real_augmented best baseline balanced, each image lightly augmented \u2013" in text


def test_the_worth_and_the_power_are_told(tmp_path: Path) -> None:
    path = write_page(tmp_path, verdict={"looks": (4, 8)})
    assert "Worth 140 labelled images The synthetic images do as much" in told(path, "worth")
    power = told(path, "power")
    assert "a gain of 1.90 points or more would be shown in 80 of 100" in power
    assert "97.5 % instead of 95 % at the last look" in power
    assert "4 seeds +3.25" in power
    once = write_page(tmp_path / "once", verdict={"worth": None})
    assert "The gain was looked at once, after all 8 seeds." in told(once, "power")
    assert "worth" not in sections(Page(once))


def test_groups_of_test_images_and_the_twin_are_told_where_seeds_are_added(tmp_path: Path) -> None:
    power = told(write_page(tmp_path, verdict={"looks": (4, 8), "test_units": 6}), "power")
    assert "9, of 6 groups that count once each" in power
    assert "Filled: decided. A gain decides only if it is clear over real_augmented too." in power
    alone = told(write_page(tmp_path / "alone", verdict={"looks": (4, 8)}), "power")
    assert "that count once each" not in alone


def test_the_worth_of_another_arm_than_the_winner_names_it(tmp_path: Path) -> None:
    own = write_page(tmp_path / "own")
    assert "Worth 140 more labelled images" in in_words(own.read_text(encoding="utf-8"))
    assert "That is told of" not in told(own, "worth")
    other = write_page(tmp_path / "other", verdict={"worth_of": "synthetic_only"})
    assert "Worth of synthetic_only 140 more labelled" in in_words(
        other.read_text(encoding="utf-8")
    )
    text = told(other, "worth")
    assert "That is told of synthetic_only: mixed_50 sees other images too" in text
    assert "best baseline, with fewer real images synthetic_only" in text


def test_in_a_balanced_set_no_class_is_called_the_thinnest(tmp_path: Path) -> None:
    def page(name: str, training: tuple[int, ...]) -> str:
        path = write_page(tmp_path / name, Fake(training=training))
        return in_words(path.read_text(encoding="utf-8"))

    even = page("even", (4, 4, 4))
    assert re.search(r"Gain in digit 0 ,( digit \d ,)* the first of equal classes", even)
    assert "\u201cThinnest\u201d are the first of equal classes: digit 0" in even
    assert "first of equal classes" not in page("uneven", (6, 4, 2))


def test_controls_are_told_where_they_were_run(tmp_path: Path) -> None:
    folders = write_all(tmp_path)
    path = tmp_path / "report" / "index.html"
    run(ReportParams(), folders, tmp_path / "report", NullTracker())
    assert "controls" not in sections(Page(path))
    write_controls(tmp_path)
    run(ReportParams(), folders, tmp_path / "report", NullTracker(), force=True)
    text = told(path, "controls")
    assert "All 4 came out as they must." in text
    assert "held out real accepted +4.40 +2.40 to +6.40 use \u2713 yes" in text
    write_controls(tmp_path, [("pure_noise", "negative", 3.0, "use", False)])
    run(ReportParams(), folders, tmp_path / "report", NullTracker(), force=True)
    text = told(path, "controls")
    assert "1 of 1 did not come out as they must." in text
    assert "pure noise refused +3.00 +1.00 to +5.00 use \u2717 no" in text


def test_examples_carry_what_the_filters_read(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path))
    rows = [a for a in page.all("li") if "data-label" in a]
    assert Counter(row["data-kept"] for row in rows) == {"yes": 6, "no": 5}
    assert {row["data-label"] for row in rows} == {"1", "2"}
    for row in rows:
        assert (row["data-reason"] == "accepted") == (row["data-kept"] == "yes")
        for name in ("confidence", "pixels", "ratio", "own"):
            assert float(row[f"data-{name}"] or "nan") >= 0
    options = [a["value"] for a in page.all("option")]
    assert options[:3] == ["", "1", "2"]
    (form,) = page.all("form")
    assert "hidden" in form  # until the script runs, so that none stands there without use


def test_colour_images_without_examples(tmp_path: Path) -> None:
    text = Page(write_page(tmp_path, Fake(mode="RGB", repeat_px=2), examples=0)).text
    assert "16 px, colour" in text
    assert "No accepted example was asked for." in text


@pytest.mark.slow
def test_a_hundred_classes_of_large_images_stay_small(tmp_path: Path) -> None:
    fake = Fake(
        classes=[f"class {k}" for k in range(100)],
        training=[4] * 100,
        accepted=[3] * 100,
        rejected=[1] * 100,
        held_out=1,
        mode="RGB",
        repeat_px=16,
    )
    path = write_page(tmp_path, fake, examples=200, images_per_class=64)
    assert path.stat().st_size < 5_000_000
    text = " ".join(Page(path).text.split())
    assert "70 further classes are not shown" in text
    assert "The 40 thinnest of 100 classes" in text


def test_a_page_that_would_be_too_large_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(page_module, "PAGE_BYTES", 1000)
    with pytest.raises(StageError, match=r"more than 1,000; lower report.images_per_class"):
        write_page(tmp_path)


def test_a_damaged_curve_names_the_file(tmp_path: Path) -> None:
    folders = write_findings(tmp_path)
    write_bytes(folders["train"] / "curve.csv", b"step,loss\n1,much\n")
    for name in ("train", "synthesize", "evaluate"):
        finish(folders[name], Params())
    assemble(AssembleParams(), dict(folders), tmp_path / "assemble", NullTracker())
    folders["assemble"] = tmp_path / "assemble"
    with pytest.raises(StageError, match=r"curve.csv: not readable .* run the stage `train` again"):
        run(ReportParams(), folders, tmp_path / "report", NullTracker())


def told(path: Path, section: str) -> str:
    """Return the text of a section of the page."""
    text = path.read_text(encoding="utf-8")
    start = text.index(f'<section id="{section}"')
    return in_words(text[start : text.index("</section>", start)])


def in_words(html: str) -> str:
    plain = re.sub(r"<[^>]*>", " ", html)
    return " ".join(unescape(plain).split())


def test_the_training_is_told_with_how_long_the_images_last(tmp_path: Path) -> None:
    path = write_page(tmp_path)
    text = told(path, "training")
    assert "With 12 images, best at step 1,500, copies from step 2,000." in text
    assert "Kept step 1,500 of 2,500 made" in text
    assert "Copies among its samples 0.4 % limit 1 %" in text
    assert "Kernel distance to validation images 0.3" in text
    assert "Validation loss less training loss +0.0133" in text
    assert "2,500 of at most 4,000, stopped early" in text
    assert "small network (few images)" in text
    assert "Dropout 0.125" in text
    assert "its weights began at random" in text
    assert "Caution" not in text
    assert any(a["aria-label"].startswith("Share of copies") for a in Page(path).all("svg"))


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    path = write_page(tmp_path, Fake(copy_shares=(None,) * 5))
    text = told(path, "training")
    assert "Copies were not looked for while it trained" in text
    assert text.count("not measured") == 2
    assert not any("Share of copies" in (a["aria-label"] or "") for a in Page(path).all("svg"))


def test_a_network_that_copies_is_called_so(tmp_path: Path) -> None:
    text = told(write_page(tmp_path, Fake(copy_shares=(0.1,) * 5)), "training")
    assert "Every network that was looked at copies more than the limit allows" in text
    assert "limit 1 %" in text


def test_a_pool_as_base_is_named_with_a_caution(tmp_path: Path) -> None:
    path = write_page(tmp_path, Fake(base="pool"))
    text = told(path, "training")
    assert f"Digest {BASE[:12]}" in text
    assert "2,000 steps on 52 images; loss 0.0810" in text
    assert "6 weight tensors: conv_in.0, conv_in.1, conv_in.2, conv_in.3, …" in text
    assert (
        "Caution. The base learned from 40 unlabelled images that only the arms of the pool "
        "saw too (pseudo-labels, retrieval), so part of "
        "any gain over the others may come from the pool rather than from synthesis."
    ) in text
    assert {"href": "#base"} in Page(path).all("a")


def test_a_base_of_unknown_images_is_named_with_a_caution(tmp_path: Path) -> None:
    fake = Fake(base="hub", source="someone/unet", base_beyond=None)
    text = told(write_page(tmp_path, fake), "training")
    assert "the Hugging Face hub: someone/unet" in text
    assert "Test images may be among them" in text


def test_a_base_that_saw_the_training_images_alone_needs_no_caution(tmp_path: Path) -> None:
    path = write_page(tmp_path, Fake(base="run", source="earlier", base_beyond=0))
    assert "an earlier run: earlier" in told(path, "training")
    assert "Caution" not in told(path, "training")
    assert {"href": "#base"} not in Page(path).all("a")


@pytest.mark.parametrize("source", [*HOSTILE, "'\"><img src=x onerror=alert(3)>{{ 7 * 7 }}"])
def test_a_hostile_base_name_is_shown_as_text(tmp_path: Path, source: str) -> None:
    page = Page(write_page(tmp_path, Fake(base="folder", source=source, base_beyond=None)))
    assert page.all("script") == [{}]
    assert not any({"onload", "onerror"} & attributes.keys() for _, attributes in page.tags)
    assert source in page.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "1 further images are kept aside without labels; nothing here was trained or tested"),
        (
            {"base": "pool"},
            "have no label here: the base learned from them, and nothing was tested",
        ),
        (
            {"base": "hub", "base_beyond": None},
            "the base came from elsewhere and may have seen them",
        ),
    ],
)
def test_the_pool_is_told_of_as_it_was_used(tmp_path: Path, changes, expected: str) -> None:
    folders = write_findings(tmp_path, Fake(**changes))
    path = folders["prepare"] / "summary.json"
    summary = json.loads(path.read_text())
    summary["counts"]["pool"] = {"": 1}
    write_json(path, summary)
    for folder in folders.values():
        finish(folder, Params())
    assemble(AssembleParams(), dict(folders), tmp_path / "assemble", NullTracker())
    folders["assemble"] = tmp_path / "assemble"
    run(ReportParams(), folders, tmp_path / "report", NullTracker())
    assert expected in told(tmp_path / "report" / "index.html", "data")


def test_a_stage_of_another_run_is_refused(tmp_path: Path) -> None:
    write_page(tmp_path)
    folders = {name: tmp_path / name for name in Params.model_fields if (tmp_path / name).is_dir()}
    folders.pop("report")
    write_bytes(folders["train"] / "training_ids.txt", b"other\n")
    finish(folders["train"], Params())
    with pytest.raises(StageError, match="`synthesize` was made from another `train` folder"):
        run(ReportParams(), folders, tmp_path / "report", NullTracker())


def test_guidance_that_was_tried_is_shown_with_the_chosen_row(tmp_path: Path) -> None:
    fake = Fake(searched=True, guide="this network after 62 of the 246 steps that were kept")
    path = write_page(tmp_path, fake)
    page, text = Page(path), " ".join(Page(path).text.split())
    assert "by validation images, not by looks: autoguidance 2: kernel distance -0.012;" in text
    assert "autoguidance 2chosen40256\u22120.01285.00.43" in text
    assert "no guidance202560.21080.00.43" in text
    assert "this network after 62 of the 246 steps" in text
    rows = path.read_text().split("Guidance that was tried</h3>")[1].split("</table>")[0]
    assert rows.count('<tr class="chosen">') == 1
    assert "Table of guidance that was tried" in [one.get("aria-label") for one in page.all("div")]


def test_without_a_search_the_page_does_not_speak_of_one(tmp_path: Path) -> None:
    text = Page(write_page(tmp_path)).text
    assert "was tried" not in text
    assert "Weaker network" not in text


@pytest.mark.parametrize(
    ("accepted", "draws", "sentence"),
    [
        (True, True, "was accepted and drew the images"),
        (True, False, "was accepted, but the network that it was distilled from drew the images"),
        (False, False, "was refused, so the network that it was distilled from drew the images"),
        (
            False,
            True,
            "was refused and drew the images all the same, as synthesize.generator asked",
        ),
    ],
)
def test_the_page_and_the_record_say_what_became_of_a_student(
    tmp_path: Path, accepted: bool, draws: bool, sentence: str
) -> None:
    fake = Fake(student=accepted, student_draws=draws)
    text = " ".join(Page(write_page(tmp_path, fake)).text.split())
    whole = f"A student that samples in 4 steps {sentence}: its images bring 2.00 points less."
    assert whole in text


def test_without_a_student_the_page_does_not_speak_of_one(tmp_path: Path) -> None:
    assert "A student" not in Page(write_page(tmp_path)).text


def test_the_rules_and_what_they_cost_are_shown(tmp_path: Path) -> None:
    path = write_page(tmp_path)
    text = " ".join(Page(path).text.split())
    assert "copies340.2 labels77" in text
    assert "How many images each class needs" not in text


def test_the_plan_is_shown_with_what_was_tried_and_text_is_escaped(tmp_path: Path) -> None:
    page = write_page(tmp_path, Fake(planned=True)).read_text()
    plan = page.split("How many images each class needs</h3>")[1].split("</table>")[0]
    assert "what its &lt;own&gt; curve speaks for. With the whole plan" in plan
    assert "changed by \u22120.6 points" in plan
    assert "have 500 images in all" in plan
    assert "<td>20: +1.5 <small>(0.7)</small></td><td>40: \u22120.5" in plan
    assert '<td colspan="1"></td><td class="n"></td></tr>' in plan  # tried with one size alone
    assert "mixes up &lt;a&gt; and b" in page
