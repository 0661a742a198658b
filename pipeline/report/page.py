"""The page: findings, figures and images, put into the template.

One HTML file that asks nothing of a network: style and figures are inline, images are `data:`
addresses, and a Content-Security-Policy forbids all else. One small script narrows the gallery
down; the policy names it by its hash, so that no other can run. Without it every image is shown.
"""

import base64
import hashlib
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
from pipeline.report.checks import ShownFinding, read_shown
from pipeline.report.drawing import shorten
from pipeline.report.figures import curve_figure, memory_figure
from pipeline.report.findings import Check, Findings, base_caution, plain_params
from pipeline.report.gallery import (
    Example,
    Sheets,
    contact_sheets,
    count_reasons,
    find_examples,
    find_filters,
    shown_px,
)
from pipeline.report.proof import (
    FIGURE_CLASSES,
    class_figure,
    corruption_figure,
    gains_figure,
    looks_figure,
    worth_figure,
)
from pipeline.report.quality import quality_lines
from pipeline.report.verdict import Verdict, ordered_arms, thinnest_first

PAGE_BYTES = 5_000_000

_BADGES = {
    "use": "Verdict: use",
    "use_with_care": "Verdict: use with care",
    "do_not_use": "Verdict: do not use",
}
# Columns of the table of arms, those that no arm has left out.
_SCORES = (
    ("validation_balanced_accuracy", "Validation balanced acc."),
    ("test_balanced_accuracy", "Test balanced acc."),
    ("test_macro_f1", "Macro F1"),
    ("tail_recall", "Recall, thinnest"),
    ("test_auroc", "AUROC"),
    ("calibration_error", "Calibration error"),
    ("corrupted_balanced_accuracy", "Corrupted"),
    ("worst_group_recall", "Worst group"),
)
_OPTION_CHARS = 60  # of a class name in a list of choices
_SPLITS = ("train", "validation", "test", "pool")
_TENSORS = 4  # names at most of weights that the base did not fit


@dataclass(frozen=True)
class Gallery:
    """The images of the page.

    Attributes:
        sheets: contact sheets of the classes.
        accepted: examples of what was accepted.
        rejected: examples of what was rejected.
        side_px: side at which images are shown, in CSS px.
        sharp: are their pixels kept square?
        data_checks: what the checks of the images found; None where nobody checked.
    """

    sheets: Sheets
    accepted: list[Example]
    rejected: list[Example]
    side_px: int
    sharp: bool
    data_checks: tuple[ShownFinding, ...] | None = None


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
        data_checks=read_shown(prepared),
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
    thin = thinnest_first(verdict)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=signed_points,
        percent=percent,
        value=plain_value,
        signed=signed_number,
        option=lambda name: shorten(name, _OPTION_CHARS),
    )
    script = (Path(__file__).parent / "filters.js.j2").read_text(encoding="utf-8")
    examples = [*gallery.accepted, *gallery.rejected]
    page = environment.get_template("page.html.j2").render(
        title=title,
        f=findings,
        v=verdict,
        badge=_BADGES[verdict.decision],
        figures=_draw(findings, loss, checks),
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        base_caution=base_caution(
            findings.pretraining,
            findings.base_images,
            verdict,
            findings.preparation.image_size_px,
            findings.preparation.image_mode,
        ),
        copies_measured=any(math.isfinite(one.copy_share) for one in checks),
        reinitialised_shown=_TENSORS,
        thin=thin,
        figure_classes=FIGURE_CLASSES,
        arms=ordered_arms(verdict),
        columns=[
            (key, title)
            for key, title in _SCORES
            if any(getattr(arm, key) is not None for arm in verdict.arms)
        ],
        gallery=gallery,
        data_checks=gallery.data_checks,
        examples=examples,
        filters=find_filters(examples),
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


def _draw(
    findings: Findings, loss: list[tuple[float, ...]], checks: list[Check]
) -> dict[str, Markup]:
    """Return the figures; they are drawn here, of escaped text alone."""
    verdict, training = findings.verdict, findings.training
    figures = {
        "gains": gains_figure(verdict),
        "classes": class_figure(thinnest_first(verdict)[:FIGURE_CLASSES]),
        "curve": curve_figure(
            [(int(step), value) for step, value in loss],
            [(one.step, one.training_loss, one.heldout_loss) for one in checks],
        ),
        "memory": memory_figure(
            checks, training.kept_step, findings.copy_limit, training.copies_from_step
        ),
        "looks": looks_figure(verdict.looks) if len(verdict.looks) > 1 else "",
        "corruptions": corruption_figure(verdict.corruptions) if verdict.corruptions else "",
        "worth": _worth(verdict),
    }
    return {name: Markup(figure) for name, figure in figures.items()}  # noqa: S704 - drawn here


def _worth(verdict: Verdict) -> str:
    if verdict.learning_curve is None:
        return ""
    arm = verdict.arm(verdict.learning_curve.arm)
    if arm is None:
        return ""
    reached = arm.test_balanced_accuracy.mean
    return worth_figure(verdict.learning_curve, reached, verdict.n.training)


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
