"""What all figures share: inline SVG that takes its colours from the page's style sheet.

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

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-in colours: no other colour is drawn, and each becomes a variable of the style sheet.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
REAL, MIXED, ACCENT, WARN = "#040404", "#050505", "#060606", "#070707"
SOFT, SURFACE = "#080808", "#090909"  # a tint behind, and what lies under the figure
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    REAL: "var(--real)",
    MIXED: "var(--mixed)",
    ACCENT: "var(--accent)",
    WARN: "var(--no)",
    SOFT: "var(--soft)",
    SURFACE: "var(--surface)",
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
STEPS = [1, 2, 5, 10]  # round distances of ticks


@dataclass
class Labels:
    """Texts that are put in after drawing, by their stand-ins, and how long they may be."""

    texts: list[str]
    length: int = _LABEL_CHARS

    def add(self, text: str) -> str:
        """Return the stand-in of a text that may hold anything."""
        self.texts.append(shorten(text, self.length))
        return f"@{len(self.texts) - 1}@"


def shorten(text: str, length: int = _LABEL_CHARS) -> str:
    """Return printable text of at most `length` characters; an ellipsis stands for the rest."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= length else flat[: length - 1] + "\u2026"


def signed(points: float) -> str:
    """Return percentage points with their sign; the minus is a true one."""
    return f"{points:+.2f}".replace("-", "\u2212")


def label_inches(names: Sequence[str], length: int = _LABEL_CHARS) -> float:
    """Return the room that the longest of the names needs at the left, in inches."""
    return 0.2 + 0.078 * max(len(shorten(name, length)) for name in names)


def one_panel(
    height: float, left: float, bottom: float = 0.48, top: float = 0.12, right: float = 0.1
) -> tuple[Figure, Axes]:
    """Return a figure of one panel, all lengths in inches."""
    heights = [height - bottom - top]
    figure, (axes,) = stacked(heights, left, bottom=bottom, top=top, right=right)
    return figure, axes


def stacked(
    heights: Sequence[float],
    left: float,
    between: float = 0.0,
    bottom: float = 0.48,
    top: float = 0.12,
    right: float = 0.1,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels one below the other, all lengths in inches."""
    height = sum(heights) + between * (len(heights) - 1) + bottom + top
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


def finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points whose value is a number."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def dots(axes: Axes, points: Sequence[tuple[int, float]], colour: str, line: bool = True) -> None:
    """Draw points, joined by a line or not; many of them have no marks."""
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


def mark(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Write at shares of the axes' width and height; a text near an end leans inwards."""
    side = "left" if x < 0.3 else "right" if x > 0.7 else "center"
    axes.text(x, y, text, transform=axes.transAxes, ha=side, va="bottom", color=colour, size=10)


def steps_axis(axes: Axes) -> None:
    """Give a panel faint horizontal lines."""
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelcolor=MUTED, which="both", color=LINE)


def rows_axis(axes: Axes, rows: Sequence[int], names: Sequence[str]) -> None:
    """Give a panel one named row each, and faint vertical lines."""
    axes.set_yticks(list(rows), list(names))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def to_svg(figure: Figure, name: str, description: str, labels: Sequence[str]) -> str:
    """Return the figure as inline SVG.

    Args:
        figure: what was drawn.
        name: of the figure, unlike those of others on the page: its ids begin with it.
        description: what it shows, for those who do not see it; any text.
        labels: texts of the stand-ins; any text.
    """
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
