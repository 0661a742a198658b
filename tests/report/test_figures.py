import math
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest
from fake_stages import Fake, write_stages

from pipeline.report.figures import (
    arms_figure,
    class_figure,
    curve_figure,
    gain_figure,
    memory_figure,
    shorten,
    smoothed,
)
from pipeline.report.findings import Check, Verdict, read_record

HOSTILE = ("<script>alert(1)</script>", "$\\frac$ @0@ 猫 😀", "a" * 200)


CHECKS = [
    Check(500, 0.3, 0.31, 0.0, 0.4),
    Check(1000, 0.2, 0.24, math.nan, 0.2),
    Check(1500, 0.1, 0.3, 0.05, math.nan),
]


def verdict(root: Path, **changes) -> Verdict:
    write_stages(root, Fake(**changes))
    return read_record(root / "evaluate" / "verdict.json", Verdict)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("text")]


def draw_all(found: Verdict) -> dict[str, str]:
    return {
        "gain": gain_figure(found),
        "arms": arms_figure(found),
        "classes": class_figure(found.per_class),
        "curve": curve_figure([(1, 1.0), (2, 0.5), (3, 0.1)], [(2, 0.5, 0.6), (3, 0.1, 0.2)]),
        "memory": memory_figure(CHECKS, 500, 0.01, 1500),
    }


@pytest.mark.filterwarnings("error")
def test_names_are_text_and_never_markup_or_mathematics(tmp_path: Path) -> None:
    svg = class_figure(verdict(tmp_path, classes=HOSTILE).per_class)
    shown = texts(svg)
    assert "<script>alert(1)<\u2026" in shown
    assert "$\\frac$ @0@ 猫 😀" in shown
    assert "a" * 17 + "\u2026" in shown
    assert "<script" not in svg


def test_the_gain_figure_shows_the_gain_and_both_ends(tmp_path: Path) -> None:
    shown = texts(gain_figure(verdict(tmp_path, gain=(-1.5, -4.0, 1.25))))
    assert {"\u22121.50", "\u22124.00", "+1.25", "no gain"} <= set(shown)


def test_figures_take_their_colours_from_the_page_alone(tmp_path: Path) -> None:
    for name, svg in draw_all(verdict(tmp_path)).items():
        assert "#0" not in svg.replace("#000000", ""), name
        assert "var(--" in svg
        assert "http" not in svg
        assert "DejaVu" not in svg


def test_ids_of_figures_on_one_page_differ_and_are_found(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name, svg in draw_all(verdict(tmp_path)).items():
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


def test_drawing_twice_gives_the_same_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    found = verdict(tmp_path)
    before = dict(mpl.rcParams)
    assert draw_all(found) == draw_all(found)
    assert dict(mpl.rcParams) == before


def test_one_class_one_step_and_a_zero_gain_can_be_drawn(tmp_path: Path) -> None:
    found = verdict(tmp_path, gain=(0.0, 0.0, 0.0))
    assert "+0.00" in texts(gain_figure(found))
    assert "digit 0" in texts(class_figure(found.per_class[:1]))
    assert "loss" in texts(curve_figure([(1, 0.5)], []))
    assert "loss" in texts(curve_figure([], []))


def test_the_memory_figure_marks_what_was_kept_and_where_copying_starts() -> None:
    svg = memory_figure(CHECKS, 500, 0.01, 1500)
    shown = texts(svg)
    assert {"kept: step 500", "copies from step 1,500", "copies, %", "kernel dist."} <= set(shown)
    assert "the limit is 1 % copies, which every check from step 1,500 on passes" in svg
    assert "var(--no)" in svg
    assert "nan" not in svg.lower()
    calm = memory_figure(CHECKS[:2], 500, 0.01)
    assert not any("copies from" in text for text in texts(calm))


def test_the_memory_figure_does_without_what_was_not_measured() -> None:
    blank = [Check(500, 0.3, math.nan, math.nan, math.nan)]
    assert "kernel dist." not in texts(memory_figure(blank, 500, 0.01))
    assert "copies, %" in texts(memory_figure(blank, 500, 0.01))
    assert "kept: step 7" in texts(memory_figure([], 7, 0.0))
    few = [Check(500, 0.3, math.nan, 0.0, math.nan)]
    assert "kernel dist." not in texts(memory_figure(few, 500, 1.0))


def test_losses_that_are_not_finite_are_not_drawn() -> None:
    gaps = [(1, 0.5, math.nan), (2, math.inf, math.nan), (3, 0.4, math.nan)]
    svg = curve_figure([(1, 0.5), (2, 0.4)], gaps)
    assert "training rows" in texts(svg)
    assert "validation rows" not in texts(svg)
    assert "nan" not in svg.lower()


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert smoothed([1.0, 3.0, 5.0], window=2) == [1.0, 2.0, 4.0]
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert smoothed([]) == []


def test_long_names_are_cut() -> None:
    assert shorten("abcdef", 4) == "abc\u2026"
    assert shorten("abcd", 4) == "abcd"
    assert shorten("a\nb", 4) == "a b"
