"""The page: findings, figures and images, put into the template.

One HTML file that asks nothing of a network: style and figures are inline, images are `data:`
addresses, there is no script, and a Content-Security-Policy forbids all else.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.data.store import read_info
from pipeline.errors import StageError
from pipeline.report.figures import (
    FIGURE_CLASSES,
    arms_figure,
    class_figure,
    curve_figure,
    gain_figure,
    memory_figure,
)
from pipeline.report.findings import ArmResult, Check, Findings, plain_params
from pipeline.report.gallery import (
    Example,
    Sheets,
    contact_sheets,
    count_reasons,
    find_examples,
    shown_px,
)
from pipeline.report.quality import quality_lines

PAGE_BYTES = 5_000_000

_BASELINES = {
    "real": "real rows as they come",
    "real_balanced": "real rows, every class drawn equally often",
    "real_augmented": "balanced, each image lightly augmented",
    "real_augmented_strong": "balanced, each image strongly augmented",
}
_SPLITS = ("train", "validation", "test", "pool")
_TENSORS = 4  # names at most of weights that the base did not fit


@dataclass(frozen=True)
class Gallery:
    """The images of the page."""

    sheets: Sheets
    accepted: list[Example]
    rejected: list[Example]
    side_px: int
    sharp: bool


def read_gallery(
    prepared: Path, synthesized: Path, findings: Findings, images_per_class: int, examples: int
) -> Gallery:
    """Choose the images and read them.

    Args:
        prepared: prepare's folder.
        synthesized: synthesize's folder; its rejected store may be absent.
        findings: of all stages.
        images_per_class: most images of each kind in a contact sheet.
        examples: most accepted and most rejected examples.
    """
    dataset, accepted = prepared / "dataset", synthesized / "accepted"
    side, sharp = shown_px(read_info(dataset).image_size_px)
    return Gallery(
        sheets=contact_sheets(dataset, accepted, findings.verdict, images_per_class),
        accepted=find_examples(accepted, dataset, examples),
        rejected=find_examples(synthesized / "rejected", dataset, examples),
        side_px=side,
        sharp=sharp,
    )


def render(
    title: str,
    findings: Findings,
    gallery: Gallery,
    reasons: Mapping[str, str],
    loss: list[tuple[float, ...]],
    checks: list[Check],
) -> str:
    """Return the page.

    Args:
        title: heading, as the user set it.
        findings: of all stages.
        gallery: images to show.
        reasons: reason of a rejection -> what it means, in plain words.
        loss: (step, loss) of training batches.
        checks: looks at the network on the way.

    Raises:
        StageError: the page would be larger than `PAGE_BYTES`.
    """
    verdict = findings.verdict
    thin = sorted(verdict.per_class, key=lambda one: one.training_images)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=signed_points, percent=percent, value=plain_value, signed=signed_number
    )
    page = environment.get_template("page.html.j2").render(
        title=title,
        f=findings,
        v=verdict,
        use=verdict.decision == "use",
        figures={
            # Drawn here, of escaped text alone.
            "gain": Markup(gain_figure(verdict)),
            "arms": Markup(arms_figure(verdict)),
            "classes": Markup(class_figure(thin[:FIGURE_CLASSES])),
            "curve": Markup(
                curve_figure(
                    [(int(step), value) for step, value in loss],
                    [(one.step, one.training_loss, one.heldout_loss) for one in checks],
                )
            ),
            "memory": Markup(
                memory_figure(
                    checks,
                    findings.training.kept_step,
                    findings.copy_limit,
                    findings.training.copies_from_step,
                )
            ),
        },
        copies_measured=any(math.isfinite(one.copy_share) for one in checks),
        reinitialised_shown=_TENSORS,
        thin=thin,
        figure_classes=FIGURE_CLASSES,
        arms=[(arm, describe_arm(arm)) for arm in verdict.arms],
        gallery=gallery,
        reasons=reasons,
        quality=quality_lines(findings.synthesis.quality),
        reason_counts=count_reasons(one.reasons for one in findings.synthesis.classes),
        splits=[split for split in _SPLITS if split in findings.preparation.counts],
        settings=[(name, plain_params(m)) for name, m in findings.manifests.items()],
    )
    if len(page.encode()) > PAGE_BYTES:
        raise StageError(
            f"report: the page would have {len(page.encode()):,} bytes, more than {PAGE_BYTES:,}; "
            "lower report.images_per_class or report.examples"
        )
    return page


def describe_arm(arm: ArmResult) -> str:
    """Return what the arm trains on, in plain words."""
    if arm.role == "mixed":
        share = f"{100 * (arm.share or 0.0):g} %"
        return f"balanced; {share} of draws synthetic, in classes that have synthetic rows"
    if arm.role == "synthetic_only":
        return "balanced; synthetic rows alone"
    return _BASELINES.get(arm.name, "real rows")


def signed_points(value: float) -> str:
    """Return percentage points with their sign; the minus is a true one."""
    return f"{value:+.2f}".replace("-", "\u2212")


def signed_number(value: float) -> str:
    """Return a loss with its sign, four digits after the point; the minus is a true one."""
    return f"{value:+.4f}".replace("-", "\u2212")


def percent(value: float) -> str:
    """Return a share in [0, 1] as a number of percent, without the sign."""
    return f"{100 * value:.1f}"


def plain_value(value: Any) -> str:
    """Return a setting as the page shows it."""
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
