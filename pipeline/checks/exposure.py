"""Blank, too dark and too bright images."""

import numpy as np

from pipeline.checks.examined import Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Finding
from pipeline.checks.scale import deviations

BLANK_STD = 2.0  # grey levels of 255; sensor noise and JPEG's ringing stay below it
_OUTLYING = 5.0


def exposure(examined: Examined) -> list[Finding]:
    """Report images without content, and those far darker or brighter than the set.

    Brightness is compared as log((1 + mean) / (256 - mean)): near black and near white, where a
    mean can go no further, equal steps of it count for more.
    """
    facts = examined.facts
    if not len(examined):
        return []
    blank = facts.std < BLANK_STD
    mean = facts.mean.astype(np.float64)
    light = deviations(np.log((1 + mean) / (256 - mean)), least_scale=0.2)
    cases = (
        ("blank", blank, facts.std, "image is blank", "images are blank"),
        ("dark", ~blank & (light < -_OUTLYING), light, "image is", "images are"),
        ("bright", ~blank & (light > _OUTLYING), -light, "image is", "images are"),
    )
    findings: list[Finding] = []
    for check, flags, order, one, many in cases:
        rows = np.flatnonzero(flags)
        if not len(rows):
            continue
        shown = rows[np.argsort(order[rows], kind="stable")][:MAX_EXAMPLES]
        more = "" if check == "blank" else f" far {check}er than the others"
        findings.append(
            Finding(
                check,
                "warning",
                len(rows),
                f"{count_of(len(rows), one, many)}{more}",
                "kept; remove those that show nothing",
                tuple(
                    examined.example(row, f"mean grey value {mean[row]:.0f} of 255")
                    for row in shown
                ),
            )
        )
    return findings
