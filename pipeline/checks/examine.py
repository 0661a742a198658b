"""All checks of a set, in order: what is set aside is not examined any further."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline.checks.blurred import blurred
from pipeline.checks.class_sizes import class_sizes
from pipeline.checks.exact_duplicates import exact_duplicates
from pipeline.checks.examined import Examined, Rows, Settings
from pipeline.checks.exposure import exposure
from pipeline.checks.findings import Aside, Finding, ordered
from pipeline.checks.label_conflicts import label_conflicts
from pipeline.checks.label_issues import label_issues
from pipeline.checks.leaks import leaks
from pipeline.checks.shapes import shapes
from pipeline.checks.split_groups import split_groups
from pipeline.checks.units import split_units


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Attributes:
        findings: the gravest first.
        clusters: (N,) the lowest row of each row's cluster of equal and nearly equal images. Rows
            of one cluster belong on one side of every split; their labels may differ. What is set
            aside is alone.
        aside: rows to quarantine, ascending.
    """

    findings: tuple[Finding, ...]
    clusters: Rows
    aside: tuple[Aside, ...]


def examine(
    examined: Examined, settings: Settings, on_progress: Callable[[str, int, int], None]
) -> Checked:
    """Return what all checks find.

    Args:
        examined: the set.
        settings: what to look for.
        on_progress: hears (task, done, total).
    """
    findings, aside = label_conflicts(examined)
    leaking, leaked = leaks(examined, aside)
    findings += leaking
    aside = [*aside, *leaked]
    kept = np.ones(len(examined), dtype=bool)
    kept[[one.row for one in aside]] = False
    rows = np.flatnonzero(kept)
    left = _subset(examined, rows)
    findings += exact_duplicates(left) + split_groups(left)
    findings += exposure(left) + blurred(left) + shapes(left)
    found, inner = _near(left, settings, on_progress)
    findings += found
    units = split_units(left, inner)
    if settings.label_issues:
        found, doubted = label_issues(left, units, np.arange(len(left)), settings, on_progress)
        findings += found
        aside += [one._replace(row=int(rows[one.row])) for one in doubted]
        kept[[one.row for one in aside]] = False
    still = kept[rows]
    findings += class_sizes(_subset(left, np.flatnonzero(still)), units[still], settings)
    clusters = np.arange(len(examined))
    clusters[rows] = rows[inner]
    return Checked(ordered(findings), clusters, tuple(sorted(aside)))


def _near(
    examined: Examined, settings: Settings, on_progress: Callable[[str, int, int], None]
) -> tuple[list[Finding], Rows]:
    distinct = examined.first_rows
    if not settings.near_duplicates or not len(distinct):
        return [], examined.same
    if len(distinct) > settings.near_duplicate_rows:
        skipped = Finding(
            "near_duplicates_skipped",
            "info",
            len(distinct),
            f"near duplicates were not looked for: {len(distinct):,} distinct images, and at most "
            f"{settings.near_duplicate_rows:,} are searched",
            "exact copies were; near ones may stand on two sides of a split",
        )
        return [skipped], examined.same
    # faiss costs half a second to load.
    from pipeline.checks.near_duplicates import cluster_rows, find_pairs, near_duplicates

    pairs = find_pairs(examined, distinct, settings.threads, on_progress)
    clusters, broken = cluster_rows(examined, pairs)
    return [*near_duplicates(examined, pairs), *broken], clusters


def _subset(examined: Examined, rows: Rows) -> Examined:
    if len(rows) == len(examined):
        return examined
    wanted = rows.tolist()
    return replace(
        examined,
        names=[examined.names[row] for row in wanted],
        labels=examined.labels[rows],
        splits=[examined.splits[row] for row in wanted],
        groups=[examined.groups[row] for row in wanted] if examined.groups else (),
        ids=[examined.ids[row] for row in wanted],
        facts=examined.facts.take(rows),
        images=lambda some: examined.images(rows[some]),
    )
