"""The figures of the page, as inline SVG that takes its colours from the page's style sheet.

Matplotlib draws; what it cannot say is put in afterwards: CSS variables for its stand-in colours,
so that a figure follows light and dark, and escaped labels for its stand-in texts, so that a class
name is never read as markup, mathematics or a missing glyph. Output depends on the data alone.
"""

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.report.findings import Check, ClassGain, Verdict

# Stand-in colours: no other colour is drawn, and each becomes a variable of the style sheet.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
REAL, MIXED, ACCENT, WARN = "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    REAL: "var(--real)",
    MIXED: "var(--mixed)",
    ACCENT: "var(--accent)",
    WARN: "var(--no)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read out, found and copied
    "font.size": 11.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "axes.linewidth": 1.0,
    "lines.solid_capstyle": "round",
}
_WIDTH = 4.4  # inches; narrow, so that text keeps its size on a phone
_POINTS = 72.0  # SVG units an inch
_LABEL_CHARS = 18
_STEPS = [1, 2, 5, 10]  # round distances of ticks
FIGURE_CLASSES = 40  # classes at most in the figure; the table has all


@dataclass
class _Labels:
    """Texts that are put in after drawing, by their stand-ins."""

    texts: list[str]

    def add(self, text: str) -> str:
        self.texts.append(shorten(text))
        return f"@{len(self.texts) - 1}@"


def shorten(text: str, length: int = _LABEL_CHARS) -> str:
    """Return printable text of at most `length` characters; an ellipsis stands for the rest."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= length else flat[: length - 1] + "\u2026"


def gain_figure(verdict: Verdict) -> str:
    """Return the gain with its interval against zero, in percentage points."""
    low, high = verdict.interval_points
    figure, axes = _figure(2.0, left=0.1, bottom=0.5, top=0.32)
    span = max(abs(low), abs(high), abs(verdict.gain_points), 0.5) * 1.15
    axes.set_xlim(min(-0.35 * span, low * 1.15), max(0.35 * span, high * 1.15))
    axes.set_ylim(-1.0, 1.0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.spines["left"].set_visible(False)
    axes.axvline(0.0, color=INK, linewidth=1.2, linestyle=(0, (3, 3)))
    axes.text(0.0, 1.1, "no gain", ha="center", va="bottom", color=MUTED, size=10)
    axes.plot([low, high], [0, 0], color=ACCENT, linewidth=3)
    for end in (low, high):
        axes.plot([end, end], [-0.12, 0.12], color=ACCENT, linewidth=3)
    axes.plot([verdict.gain_points], [0], "o", color=ACCENT, markersize=12)
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    gain = _signed(verdict.gain_points)
    axes.text(verdict.gain_points, 0.48, gain, weight="bold", color=INK, **middle)
    if high - low > 0.3 * span:  # the texts of near ends would be printed over one another
        for end in (low, high):
            axes.text(end, -0.42, _signed(end), color=MUTED, **middle)
    axes.set_xlabel("gain in balanced accuracy, percentage points")
    text = (
        f"Gain {_signed(verdict.gain_points)} points, {100 * verdict.confidence:g} % interval "
        f"{_signed(low)} to {_signed(high)}; zero would be no gain."
    )
    return _svg(figure, "gain", text, [])


def arms_figure(verdict: Verdict) -> str:
    """Return test balanced accuracy of each arm: dot at the mean, whisker one SD over seeds."""
    arms = list(verdict.arms)
    labels = _Labels([])
    names = [labels.add(arm.name) for arm in arms]
    figure, axes = _figure(0.75 + 0.27 * len(arms), left=_label_inches([arm.name for arm in arms]))
    rows = range(len(arms) - 1, -1, -1)
    for row, arm in zip(rows, arms, strict=True):
        spread = arm.test_balanced_accuracy
        mean, sd = 100 * spread.mean, 100 * spread.sd
        chosen = arm.name in (verdict.best_baseline, verdict.best_mixed)
        colour = {"baseline": REAL, "mixed": MIXED, "synthetic_only": MUTED}[arm.role]
        axes.plot([mean - sd, mean + sd], [row, row], color=colour, linewidth=2)
        axes.plot(
            [mean],
            [row],
            "o",
            color=colour if chosen else "none",
            markeredgecolor=colour,
            markeredgewidth=1.8,
            markersize=9 if chosen else 6.5,
        )
    _rows_axis(axes, rows, names)
    axes.set_xlabel("test balanced accuracy, %")
    axes.margins(x=0.06)
    text = "Test balanced accuracy of each arm: " + "; ".join(
        f"{arm.name} {100 * arm.test_balanced_accuracy.mean:.1f} %" for arm in arms
    )
    return _svg(figure, "arms", text, labels.texts)


def class_figure(classes: Sequence[ClassGain]) -> str:
    """Return each class's gain with its interval, in the given order, top to bottom."""
    labels = _Labels([])
    names = [labels.add(one.name) for one in classes]
    height = 0.75 + 0.24 * len(classes)
    figure, axes = _figure(height, left=_label_inches([one.name for one in classes]))
    rows = range(len(classes) - 1, -1, -1)
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    for row, one in zip(rows, classes, strict=True):
        sure = one.low_points > 0 or one.high_points < 0
        colour = MIXED if sure else MUTED
        axes.plot([one.low_points, one.high_points], [row, row], color=colour, linewidth=2)
        axes.plot(
            [one.gain_points],
            [row],
            "o",
            color=colour if sure else "none",
            markeredgecolor=colour,
            markeredgewidth=1.8,
            markersize=6.5,
        )
    _rows_axis(axes, rows, names)
    axes.set_xlabel("gain in recall, percentage points")
    text = "Gain in recall of each class with its interval; the numbers are in the table."
    return _svg(figure, "classes", text, labels.texts)


def curve_figure(
    loss: Sequence[tuple[int, float]], heldout: Sequence[tuple[int, float, float]]
) -> str:
    """Return the loss of training batches, and that of fixed training and validation rows.

    Args:
        loss: (step, loss) of single batches.
        heldout: (step, loss of training rows, loss of validation rows); one that is not finite is
            not drawn.
    """
    figure, axes = _figure(2.5, left=0.62)
    steps = [step for step, _ in loss]
    drawn = list(zip(steps, smoothed([value for _, value in loss]), strict=True))
    lines = [
        ("training batches, smoothed", MUTED, 1.4, drawn),
        ("training rows", REAL, 2.0, _finite((step, value) for step, value, _ in heldout)),
        ("validation rows", MIXED, 2.0, _finite((step, value) for step, _, value in heldout)),
    ]
    for label, colour, width, points in lines:
        if points:
            mark = "o" if len(points) < 20 and width > 1.5 else None
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, linewidth=width, marker=mark, markersize=4, label=label)
    positive = [value for *_, points in lines for _, value in points if value > 0]
    if positive and max(positive) / min(positive) > 5:
        axes.set_yscale("log")
        # The default labels of a log axis are mathematics, which is switched off.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(NullLocator())
    _steps_axis(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if any(points for *_, points in lines):
        axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=10)
    return _svg(figure, "curve", "Loss by training step; the last values are in the text.", [])


def memory_figure(
    checks: Sequence[Check], kept_step: int, copy_limit: float, copies_from: int | None = None
) -> str:
    """Return how long the images last: share of copies, and below it the kernel distance.

    Args:
        checks: looks at the network, in order; what is not finite is not drawn, and without any
            kernel distance there is no second panel.
        kept_step: step of the network that was kept.
        copy_limit: largest share of copies in a network that is kept, in [0, 1].
        copies_from: step from which every check copies more than that, where there is one.
    """
    shares = _finite((one.step, 100 * one.copy_share) for one in checks)
    distances = _finite((one.step, one.quality) for one in checks)
    limit = 100 * copy_limit
    top = 0.4 if copies_from is None else 0.62
    panels = [1.3, 1.1] if distances else [1.3]
    figure, all_axes = _panels(panels, left=0.72, between=0.22, top=top)
    end = max([kept_step, *(one.step for one in checks)])
    for axes, points in zip(all_axes, (shares, distances), strict=False):
        _steps_axis(axes)
        axes.set_xlim(0, 1.03 * end)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        axes.axvline(kept_step, color=INK, linewidth=1.2)
        if copies_from is not None:
            axes.axvline(copies_from, color=WARN, linewidth=1.4, linestyle=(0, (1, 2)))
        _dots(axes, points, MIXED)
        axes.tick_params(axis="x", labelbottom=axes is all_axes[-1])
    above = all_axes[0]
    above.set_ylim(0, max(1.5 * limit, 1.15 * max((y for _, y in shares), default=0.0), 0.5))
    above.axhline(limit, color=WARN, linewidth=1.4, linestyle=(0, (4, 3)))
    _dots(above, [(x, y) for x, y in shares if y > limit], WARN, line=False)
    above.set_ylabel("copies, %")
    if distances:
        all_axes[1].set_ylabel("kernel dist.")
    all_axes[-1].set_xlabel("step")
    _mark(above, kept_step / (1.03 * end), 1 + 0.1 / panels[0], f"kept: step {kept_step:,}", INK)
    if copies_from is not None:
        _mark(
            above,
            copies_from / (1.03 * end),
            1 + 0.32 / panels[0],
            f"copies from step {copies_from:,}",
            WARN,
        )
    text = f"Share of copies and kernel distance by training step; kept at step {kept_step:,}; "
    text += f"the limit is {limit:g} % copies"
    if copies_from is not None:
        text += f", which every check from step {copies_from:,} on passes"
    return _svg(figure, "memory", text + ".", [])


def smoothed(values: Sequence[float], window: int = 0) -> list[float]:
    """Return the running mean over the last `window` values (0: a fortieth of all of them)."""
    if not values:
        return []
    width = window or max(1, len(values) // 40)
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return [float(mean) for mean in (total[ends] - total[starts]) / (ends - starts)]


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "\u2212")


def _label_inches(names: Sequence[str]) -> float:
    return 0.2 + 0.083 * max(len(shorten(name)) for name in names)


def _figure(
    height: float, left: float, bottom: float = 0.48, top: float = 0.12
) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels([height - bottom - top], left, bottom=bottom, top=top)
    return figure, axes


def _panels(
    heights: Sequence[float],
    left: float,
    between: float = 0.0,
    bottom: float = 0.48,
    top: float = 0.12,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels one below the other, all lengths in inches."""
    height = sum(heights) + between * (len(heights) - 1) + bottom + top
    right = 0.1
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        FigureCanvasSVG(figure)
        panels: list[Axes] = []
        y = height - top
        for one in heights:
            y -= one
            place = (left / _WIDTH, y / height, 1 - (left + right) / _WIDTH, one / height)
            panels.append(figure.add_axes(place, sharex=panels[0] if panels else None))
            panels[-1].patch.set_visible(False)
            y -= between
        figure.patch.set_visible(False)
    return figure, panels


def _finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _dots(axes: Axes, points: Sequence[tuple[int, float]], colour: str, line: bool = True) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=2.0 if line else 0.0,
            marker="o" if len(points) < 40 or not line else None,
            markersize=4.5,
            clip_on=False,  # a share of nothing lies on the axis, and above its line
            zorder=3,
        )


def _mark(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Write at shares of the axes' width and height; a text near an end leans inwards."""
    side = "left" if x < 0.3 else "right" if x > 0.7 else "center"
    axes.text(x, y, text, transform=axes.transAxes, ha=side, va="bottom", color=colour, size=10)


def _steps_axis(axes: Axes) -> None:
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelcolor=MUTED, which="both", color=LINE)


def _rows_axis(axes: Axes, rows: Sequence[int], names: Sequence[str]) -> None:
    axes.set_yticks(list(rows), list(names))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def _svg(figure: Figure, name: str, description: str, labels: Sequence[str]) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"replenish-{name}"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    width, height = figure.get_size_inches() * _POINTS
    opening = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(description)}">'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    # Ids of several figures on one page must differ.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    return re.sub(r"@(\d+)@", lambda m: html.escape(labels[int(m.group(1))]), text)
