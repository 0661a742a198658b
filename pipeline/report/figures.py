"""The figures of how the generator was trained: its loss, and how long its images last."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.report.drawing import (
    INK,
    MIXED,
    MUTED,
    REAL,
    STEPS,
    WARN,
    dots,
    finite,
    mark,
    one_panel,
    stacked,
    steps_axis,
    to_svg,
)
from pipeline.report.findings import Check


def curve_figure(
    loss: Sequence[tuple[int, float]], heldout: Sequence[tuple[int, float, float]]
) -> str:
    """Return the loss of training batches, and that of fixed training and validation rows.

    Args:
        loss: (step, loss) of single batches.
        heldout: (step, loss of training rows, loss of validation rows); one that is not finite is
            not drawn.
    """
    figure, axes = one_panel(2.5, left=0.62)
    steps = [step for step, _ in loss]
    drawn = list(zip(steps, smoothed([value for _, value in loss]), strict=True))
    lines = [
        ("training batches, smoothed", MUTED, 1.4, drawn),
        ("training rows", REAL, 2.0, finite((step, value) for step, value, _ in heldout)),
        ("validation rows", MIXED, 2.0, finite((step, value) for step, _, value in heldout)),
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
    steps_axis(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if any(points for *_, points in lines):
        axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=10)
    return to_svg(figure, "curve", "Loss by training step; the last values are in the text.", [])


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
    shares = finite((one.step, 100 * one.copy_share) for one in checks)
    distances = finite((one.step, one.quality) for one in checks)
    limit = 100 * copy_limit
    top = 0.4 if copies_from is None else 0.62
    panels = [1.3, 1.1] if distances else [1.3]
    figure, all_axes = stacked(panels, left=0.72, between=0.22, top=top)
    end = max([kept_step, *(one.step for one in checks)])
    for axes, points in zip(all_axes, (shares, distances), strict=False):
        steps_axis(axes)
        axes.set_xlim(0, 1.03 * end)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        axes.axvline(kept_step, color=INK, linewidth=1.2)
        if copies_from is not None:
            axes.axvline(copies_from, color=WARN, linewidth=1.4, linestyle=(0, (1, 2)))
        dots(axes, points, MIXED)
        axes.tick_params(axis="x", labelbottom=axes is all_axes[-1])
    above = all_axes[0]
    above.set_ylim(0, max(1.5 * limit, 1.15 * max((y for _, y in shares), default=0.0), 0.5))
    above.axhline(limit, color=WARN, linewidth=1.4, linestyle=(0, (4, 3)))
    dots(above, [(x, y) for x, y in shares if y > limit], WARN, line=False)
    above.set_ylabel("copies, %")
    if distances:
        all_axes[1].set_ylabel("kernel dist.")
    all_axes[-1].set_xlabel("step")
    mark(above, kept_step / (1.03 * end), 1 + 0.1 / panels[0], f"kept: step {kept_step:,}", INK)
    if copies_from is not None:
        mark(
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
    return to_svg(figure, "memory", text + ".", [])


def smoothed(values: Sequence[float], window: int = 0) -> list[float]:
    """Return the running mean over the last `window` values (0: a fortieth of all of them)."""
    if not values:
        return []
    width = window or max(1, len(values) // 40)
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return [float(mean) for mean in (total[ends] - total[starts]) / (ends - starts)]
