"""The figures of the proof: gains with intervals, what the images are worth, what was seen when.

What a figure marks by colour it marks by shape or fill too, and it all stands in a table beside.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MIXED,
    MUTED,
    REAL,
    SOFT,
    STEPS,
    SURFACE,
    WARN,
    Labels,
    label_inches,
    mark,
    one_panel,
    rows_axis,
    signed,
    steps_axis,
    to_svg,
)
from pipeline.report.verdict import (
    ArmResult,
    ClassGain,
    Corruption,
    LearningCurve,
    Look,
    Verdict,
    ordered_arms,
)

FIGURE_CLASSES = 40  # classes at most in the figure; the table has all
_ARM_CHARS = 21
_REACH = 1.2  # widths of the winner's interval that are shown on each side; the rest is cut
_ROOM = 0.62  # inches at the right, for numbers
_PITCH = 0.25  # inches a row


def gains_figure(verdict: Verdict) -> str:
    """Return the gain of every arm over the best baseline, the winner stressed.

    A thin line is the interval that holds for all arms at once, the winner's thick line its own:
    the one that decides. An arm so far off that it would press all others together stands at the
    edge, as an arrow.
    """
    arms = ordered_arms(verdict)
    labels = Labels([], _ARM_CHARS)
    names = [labels.add(arm.name) for arm in arms]
    left = label_inches([arm.name for arm in arms], _ARM_CHARS)
    figure, axes = one_panel(0.82 + _PITCH * len(arms), left, top=0.34, right=_ROOM)
    low, high = _window(verdict, arms)
    axes.set_xlim(low, high)
    axes.axvline(0.0, color=INK, linewidth=1.2, linestyle=(0, (3, 3)))
    rows = range(len(arms) - 1, -1, -1)
    for row, arm in zip(rows, arms, strict=True):
        winner = arm.name == verdict.best_synthetic
        if winner:
            axes.axhspan(row - 0.5, row + 0.5, color=SOFT, linewidth=0, zorder=0)
        _arm(axes, row, arm, verdict, winner)
        if arm.name == verdict.best_baseline:
            text = "\u00b10"
        else:
            text = "" if arm.gain_points is None else signed(arm.gain_points)
        axes.text(
            1.03,
            row,
            text,
            transform=axes.get_yaxis_transform(),
            va="center",
            ha="left",
            weight="bold" if winner else "normal",
            color=INK if winner else MUTED,
            size=10,
        )
    rows_axis(axes, rows, names)
    for row, one, other in zip(rows, arms, arms[1:], strict=False):
        if one.role != other.role:
            axes.axhline(row - 0.5, color=LINE, linewidth=1.0)
    place = (0.0 - low) / (high - low)
    mark(axes, place, 1 + 0.06 / (_PITCH * len(arms)), "best baseline", MUTED)
    axes.set_xlabel("gain in balanced accuracy, points")
    first, last = verdict.interval_points
    told = (
        f"Gain in balanced accuracy over the best baseline, {verdict.best_baseline}. "
        f"{verdict.best_synthetic}: {signed(verdict.gain_points)} points, "
        f"{100 * verdict.level:g} % interval {signed(first)} to {signed(last)}. "
        + " ".join(
            f"{arm.name}: {signed(arm.gain_points)}."
            for arm in arms
            if arm.gain_points is not None and arm.name != verdict.best_synthetic
        )
    )
    return to_svg(figure, "gains", told, labels.texts)


def class_figure(classes: Sequence[ClassGain]) -> str:
    """Return each class's gain with its simultaneous interval, in the given order."""
    labels = Labels([])
    names = [labels.add(one.name) for one in classes]
    height = 0.75 + 0.25 * len(classes)
    figure, axes = one_panel(height, left=label_inches([one.name for one in classes]))
    rows = range(len(classes) - 1, -1, -1)
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    for row, one in zip(rows, classes, strict=True):
        low, high = one.simultaneous_low_points, one.simultaneous_high_points
        sure = low > 0 or high < 0 or one.regressed
        colour = WARN if one.regressed else MIXED if low > 0 else MUTED
        axes.plot([low, high], [row, row], color=colour, linewidth=2)
        axes.plot(
            [one.gain_points],
            [row],
            "D" if one.regressed else "o",
            color=colour if sure else SURFACE,
            markeredgecolor=colour,
            markeredgewidth=1.8,
            markersize=6.5,
        )
    rows_axis(axes, rows, names)
    axes.set_xlabel("gain in recall, points")
    worse = [one.name for one in classes if one.regressed]
    told = "Gain in recall of each class with its simultaneous interval, as in the table. "
    told += f"Marked as worse: {', '.join(worse)}." if worse else "No class is marked as worse."
    return to_svg(figure, "classes", told, labels.texts)


def worth_figure(curve: LearningCurve, reached: float, real_images: int) -> str:
    """Return balanced accuracy by real images, and where the synthetic arm stands on it.

    Args:
        curve: of the best baseline.
        reached: balanced accuracy of the best synthetic arm, in [0, 1].
        real_images: that both had.
    """
    figure, axes = one_panel(2.7, left=0.62, top=0.34)
    points = sorted(curve.points, key=lambda one: one.real_images)
    x = [one.real_images for one in points]
    y = [100 * one.balanced_accuracy for one in points]
    lows, highs = [100 * one.low for one in points], [100 * one.high for one in points]
    if points:
        axes.fill_between(x, lows, highs, color=REAL, alpha=0.18, linewidth=0)
        axes.plot(x, y, color=REAL, linewidth=2, marker="o", markersize=4.5)
    worth = real_images + (curve.worth_images or 0.0)
    ends = [real_images + end for end in (curve.worth_low, curve.worth_high) if end is not None]
    right = 1.06 * max([real_images, worth, *ends, *x])
    axes.set_xlim(0, right)
    axes.axhline(100 * reached, color=MIXED, linewidth=1.6, linestyle=(0, (4, 3)))
    axes.plot([real_images], [100 * reached], "o", color=MIXED, markersize=8, zorder=4)
    mark(axes, real_images / right, 1.05, f"{real_images:,} real images", MUTED)
    axes.axvline(real_images, color=LINE, linewidth=1.2)
    if curve.worth_images:
        if len(ends) == 2:
            axes.axvspan(*ends, color=MIXED, alpha=0.12, linewidth=0)
        arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1.4, "shrinkA": 5, "shrinkB": 0}
        axes.annotate(
            "", (worth, 100 * reached), (real_images, 100 * reached), arrowprops=arrow, zorder=5
        )
    steps_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.margins(y=0.12)
    axes.set_xlabel("labelled real images")
    axes.set_ylabel("balanced accuracy, %")
    told = (
        "Balanced accuracy of the best baseline by its number of real images: "
        + "; ".join(f"{a:,.0f} images {b:.1f} %" for a, b in zip(x, y, strict=True))
        + f". With synthetic images {100 * reached:.1f} %. {curve.sentence}"
    )
    return to_svg(figure, "worth", told, [])


def looks_figure(looks: Sequence[Look]) -> str:
    """Return the gain with its interval after each number of seeds; a filled dot has decided."""
    labels = Labels([], 24)
    names = [labels.add(f"{one.seeds} seeds") for one in looks]
    figure, axes = one_panel(0.75 + 0.3 * len(looks), label_inches(labels.texts))
    rows = range(len(looks) - 1, -1, -1)
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=(0, (3, 3)))
    for row, one in zip(rows, looks, strict=True):
        colour = ACCENT if one.decided else MUTED
        axes.plot([one.low_points, one.high_points], [row, row], color=colour, linewidth=2)
        axes.plot(
            [one.gain_points],
            [row],
            "o",
            color=colour if one.decided else SURFACE,
            markeredgecolor=colour,
            markeredgewidth=1.8,
            markersize=7,
        )
    rows_axis(axes, rows, names)
    axes.set_xlabel("gain in balanced accuracy, points")
    told = "Gain after each look: " + "; ".join(
        f"{one.seeds} seeds {signed(one.gain_points)}, {signed(one.low_points)} to "
        f"{signed(one.high_points)}, {'decided' if one.decided else 'not decided'}"
        for one in looks
    )
    return to_svg(figure, "looks", told + ".", labels.texts)


def corruption_figure(corruptions: Sequence[Corruption]) -> str:
    """Return balanced accuracy under each corruption: hollow without, filled with synthesis."""
    labels = Labels([])
    names = [labels.add(one.name.replace("_", " ")) for one in corruptions]
    left = label_inches([one.name for one in corruptions])
    figure, axes = one_panel(0.75 + 0.27 * len(corruptions), left)
    rows = range(len(corruptions) - 1, -1, -1)
    for row, one in zip(rows, corruptions, strict=True):
        ends = [100 * one.baseline, 100 * one.synthetic]
        axes.plot(ends, [row, row], color=MUTED, linewidth=1.6)
        for end, fill, edge in zip(ends, (SURFACE, MIXED), (REAL, MIXED), strict=True):
            axes.plot(
                [end],
                [row],
                "o",
                color=fill,
                markeredgecolor=edge,
                markeredgewidth=1.8,
                markersize=7,
            )
    rows_axis(axes, rows, names)
    axes.margins(x=0.08)
    axes.set_xlabel("balanced accuracy, %")
    told = "Balanced accuracy without and with synthetic images: " + "; ".join(
        f"{one.name} {100 * one.baseline:.1f} % and {100 * one.synthetic:.1f} %"
        for one in corruptions
    )
    return to_svg(figure, "corruptions", told + ".", labels.texts)


def _window(verdict: Verdict, arms: Sequence[ArmResult]) -> tuple[float, float]:
    """Return the ends of the axis: all intervals, unless some lie far outside the winner's."""
    ends = [0.0, *verdict.interval_points]
    winner = verdict.arm(verdict.best_synthetic)
    if winner is not None:
        ends += [e for e in (winner.low_points, winner.high_points) if e is not None]
    inner = (min(ends), max(ends))
    span = max(inner[1] - inner[0], 0.5)
    first = min([inner[0], *(arm.low_points for arm in arms if arm.low_points is not None)])
    last = max([inner[1], *(arm.high_points for arm in arms if arm.high_points is not None)])
    margin = 0.12 * span
    return (
        max(first, inner[0] - _REACH * span) - margin,
        min(last, inner[1] + _REACH * span) + margin,
    )


def _arm(axes: Axes, row: int, arm: ArmResult, verdict: Verdict, winner: bool) -> None:
    colour = {"baseline": REAL, "synthetic": MIXED, "synthetic_only": MUTED}[arm.role]
    colour = ACCENT if winner else colour
    if arm.name == verdict.best_baseline or arm.gain_points is None:
        axes.plot([0.0], [row], "o", color=REAL, markersize=8, zorder=4)
        return
    low, high = axes.get_xlim()
    if arm.low_points is not None and arm.high_points is not None:
        axes.plot([arm.low_points, arm.high_points], [row, row], color=colour, linewidth=1.4)
    if winner:
        axes.plot(verdict.interval_points, [row, row], color=colour, linewidth=4.5)
    at, shape = arm.gain_points, "o"
    if not low <= at <= high:
        inwards = 0.02 * (high - low)
        at, shape = (low + inwards, "<") if at < low else (high - inwards, ">")
    axes.plot(
        [at],
        [row],
        shape,
        color=colour if winner else SURFACE if shape == "o" else colour,
        markeredgecolor=colour,
        markeredgewidth=1.8,
        markersize=10 if winner else 6.5,
        zorder=4,
    )
