import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import matplotlib as mpl
import pytest
from report.fake_verdict import fake_verdict

from pipeline.report.drawing import shorten
from pipeline.report.figures import curve_figure, memory_figure
from pipeline.report.findings import Check
from pipeline.report.proof import (
    class_figure,
    corruption_figure,
    gains_figure,
    looks_figure,
    worth_figure,
)
from pipeline.report.verdict import Verdict, thinnest_first

HOSTILE = ("<script>alert(1)</script>", "$\\frac$ @0@ 猫 😀", "a" * 200, "\u202eright to left")


def verdict(classes: Sequence[str] = ("cat", "dog", "owl", "eel"), **changes) -> Verdict:
    content = fake_verdict(classes, (60, 30, 10, 5)[: len(classes)], **changes)
    return Verdict.model_validate(content)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("text")]


def told(svg: str) -> str:
    return ET.fromstring(svg).attrib["aria-label"]


def draw_all(found: Verdict) -> dict[str, str]:
    assert found.learning_curve is not None
    return {
        "gains": gains_figure(found),
        "classes": class_figure(found.per_class),
        "worth": worth_figure(found.learning_curve, 0.9, found.n.training),
        "looks": looks_figure(found.looks),
        "corruptions": corruption_figure(found.corruptions),
        "curve": curve_figure([(1, 1.0), (2, 0.5), (3, 0.1)], [(2, 0.5, 0.6), (3, 0.1, 0.2)]),
        "memory": memory_figure([Check(500, 0.3, 0.31, 0.02, 0.4)], 500, 0.01, 500),
    }


@pytest.mark.filterwarnings("error")
def test_names_are_text_and_never_markup_or_mathematics() -> None:
    svg = class_figure(verdict(HOSTILE).per_class)
    shown = texts(svg)
    assert "<script>alert(1)<\u2026" in shown
    assert "$\\frac$ @0@ 猫 😀" in shown
    assert "a" * 17 + "\u2026" in shown
    assert " right to left" in shown
    assert "<script" not in svg
    worse = class_figure(verdict(HOSTILE, regressed=(0,)).per_class)
    assert "Marked as worse: <script>alert(1)</script>." in told(worse)
    assert "<script" not in worse


def test_hostile_names_of_arms_and_corruptions_are_text() -> None:
    found = verdict()
    arm = found.arms[0].model_copy(update={"name": '"><script>x</script>'})
    rows = [found.corruptions[0].model_copy(update={"name": "<b>fog"})]
    svg = gains_figure(found.model_copy(update={"arms": [arm, *found.arms[1:]]}))
    assert '"><script>x</script>' in texts(svg)
    assert "<script" not in svg
    assert "<b>fog" in texts(corruption_figure(rows))


def test_the_gains_figure_shows_every_arm_with_its_gain() -> None:
    found = verdict(gain=(-1.5, -4.0, 1.25))
    svg = gains_figure(found)
    shown = texts(svg)
    assert {arm.name for arm in found.arms} <= set(shown)
    assert {"\u22121.50", "\u22124.20", "\u00b10", "best baseline"} <= set(shown)
    assert "mixed_50: \u22121.50 points, 95 % interval \u22124.00 to +1.25." in told(svg)
    assert "synthetic_only: \u221221.00." in told(svg)
    assert shown.index("mixed_50") < shown.index("real_augmented") < shown.index("synthetic_only")


def test_an_arm_far_off_does_not_press_the_others_together() -> None:
    ticks = [float(t.replace("\u2212", "-")) for t in texts(gains_figure(verdict())) if is_tick(t)]
    assert min(ticks) >= -10  # synthetic_only stands at -21
    near = gains_figure(verdict(synthetic=0))
    assert "synthetic_only" not in texts(near)


def is_tick(text: str) -> bool:
    return re.fullmatch(r"\u2212?\d+", text) is not None


def test_a_regressed_class_is_marked_by_shape_colour_and_word() -> None:
    worse = class_figure(verdict(regressed=(1,)).per_class)
    assert "var(--no)" in worse
    assert "Marked as worse: dog." in told(worse)
    calm = class_figure(verdict().per_class)
    assert "var(--no)" not in calm
    assert "No class is marked as worse." in told(calm)


def test_the_worth_figure_tells_the_curve_and_where_the_synthetic_arm_stands() -> None:
    found = verdict()
    assert found.learning_curve is not None
    svg = worth_figure(found.learning_curve, 0.9, found.n.training)
    assert "105 real images" in texts(svg)
    assert "26 images 75.4 %" in told(svg)
    assert "With synthetic images 90.0 %." in told(svg)
    assert "140 more labelled images" in told(svg)
    unknown = found.learning_curve.model_copy(
        update={"worth_images": None, "worth_low": None, "worth_high": None}
    )
    assert "labelled real images" in texts(worth_figure(unknown, 0.9, 105))
    assert "labelled real images" in texts(
        worth_figure(unknown.model_copy(update={"points": []}), 0.9, 105)
    )


def test_the_looks_figure_tells_which_look_decided() -> None:
    svg = looks_figure(verdict(looks=(2, 4, 8)).looks)
    assert [text for text in texts(svg) if "seeds" in text] == ["2 seeds", "4 seeds", "8 seeds"]
    assert told(svg).count("not decided") == 2
    assert "8 seeds +3.10, +1.20 to +5.00, decided." in told(svg)


def test_the_corruption_figure_tells_both_scores() -> None:
    svg = corruption_figure(verdict().corruptions)
    assert "gaussian noise" in texts(svg)
    assert "gaussian_noise 71.0 % and 74.0 %" in told(svg)


def test_figures_take_their_colours_from_the_page_alone() -> None:
    for name, svg in draw_all(verdict(regressed=(0,), looks=(2, 4))).items():
        assert not re.findall(r"#[0-9a-f]{6}", svg.replace("#000000", "")), name
        assert "var(--" in svg
        assert "http" not in svg
        assert "DejaVu" not in svg


def test_ids_of_figures_on_one_page_differ_and_are_found() -> None:
    seen: set[str] = set()
    for name, svg in draw_all(verdict()).items():
        root = ET.fromstring(svg)
        ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert len(ids) == len(set(ids)), name
        assert not seen & set(ids)
        seen |= set(ids)
        for node in root.iter("use"):
            assert node.attrib["href"][1:] in ids
        for node in root.iter():
            if "clip-path" in node.attrib:
                assert node.attrib["clip-path"][5:-1] in ids


def test_drawing_twice_gives_the_same_and_leaves_matplotlib_alone() -> None:
    found = verdict()
    before = dict(mpl.rcParams)
    assert draw_all(found) == draw_all(found)
    assert dict(mpl.rcParams) == before


def test_one_class_one_look_and_a_zero_gain_can_be_drawn() -> None:
    found = verdict(("cat",), gain=(0.0, 0.0, 0.0), looks=(3,))
    assert "+0.00" in texts(gains_figure(found))
    assert "cat" in texts(class_figure(thinnest_first(found)[:1]))
    assert "3 seeds" in texts(looks_figure(found.looks))


def test_long_names_are_cut() -> None:
    assert shorten("abcdef", 4) == "abc\u2026"
    assert shorten("abcd", 4) == "abcd"
    assert shorten("a\nb", 4) == "a b"
