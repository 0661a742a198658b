import math
import xml.etree.ElementTree as ET

import pytest

from pipeline.report.figures import curve_figure, memory_figure, smoothed
from pipeline.report.findings import Check

CHECKS = [
    Check(500, 0.3, 0.31, 0.0, 0.4),
    Check(1000, 0.2, 0.24, math.nan, 0.2),
    Check(1500, 0.1, 0.3, 0.05, math.nan),
]


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("text")]


def test_one_step_and_no_step_can_be_drawn() -> None:
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
