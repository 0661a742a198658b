"""Likely wrong labels: images whose label a cross-validated classifier strongly disagrees with.

A label is doubted where another class is ten times as likely, by a logistic regression over
principal components of the pixels and over histograms of oriented gradients (`descriptors`) that
was fitted without the image and its like: no network, no download, a minute on two cores. On the
sets of docs/checks.md this rule finds more wrong labels than confident learning (Northcutt, Jiang &
Chuang 2021, arXiv:1911.00068; cleanlab) by the same probabilities, with fewer false alarms.
"""

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.checks.descriptors import describe
from pipeline.checks.examined import Examined, Rows, Settings, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Aside, Finding
from pipeline.seeds import numpy_generator

LIKELY_WRONG = "likely wrong label"

_FOLDS = 5
_COMPONENTS = 64
_REGULARISATION = 0.003  # scikit-learn's C
_STEPS = 200
_LEAST_ODDS = 0.1  # of the given label against the likeliest one; docs/checks.md says why
_BATCH = 2_000
_LEAST_OF_CLASS = 10  # units; a class of fewer is left out

Step = Callable[[str, int, int], None]


def label_issues(
    examined: Examined, units: Rows, rows: Rows, settings: Settings, on_progress: Step
) -> tuple[list[Finding], list[Aside]]:
    """Report likely wrong labels, and set them aside where `drop_label_issues` is on.

    Held-out images of a given split are never set aside: a test set without its hard images is no
    longer the one that others report on.

    Args:
        examined: the set.
        units: (N,) rows of one unit are never in two folds; see `split_units`.
        rows: those to look through.
        settings: limits, seed, threads, and what becomes of those that are found.
        on_progress: hears (task, done, total).
    """
    findings: list[Finding] = []
    rows = _large_enough(examined, units, rows)
    limit = settings.label_issue_rows
    if len(rows) > limit:
        findings.append(
            Finding(
                "label_issues_sampled",
                "info",
                len(rows) - limit,
                f"{len(rows) - limit:,} of {len(rows):,} images were not looked through for wrong "
                "labels",
                f"{limit:,} drawn at random were",
            )
        )
        drawn = numpy_generator(settings.seed, "label issues").permutation(len(rows))[:limit]
        rows = _large_enough(examined, units, rows[np.sort(drawn)])
    if len(np.unique(examined.labels[rows])) < 2:
        return findings, []
    names, labels = np.unique(examined.labels[rows], return_inverse=True)
    probabilities = held_out_probabilities(
        _described(examined, rows, on_progress),
        labels,
        units[rows],
        settings,
        on_progress,
    )
    found = disputed(labels, probabilities)
    if not len(found):
        return findings, []
    seen = names[probabilities[found].argmax(axis=1)]
    found = rows[found]
    details = [
        f"labelled {examined.class_name(row)}, looks like {examined.classes[label]!r}"
        for row, label in zip(found, seen, strict=True)
    ]
    aside = [
        Aside(int(row), LIKELY_WRONG, detail)
        for row, detail in zip(found, details, strict=True)
        if settings.drop_label_issues and examined.sides[row] <= 0
    ]
    if aside:
        done = f"{count_of(len(aside), 'is', 'are')} set aside, as prepare.drop_label_issues asks"
    else:
        done = (
            "kept; look at the examples, mend what is wrong, or set prepare.drop_label_issues to "
            "set all of them aside"
        )
    findings.append(
        Finding(
            "label_issues",
            "warning",
            len(found),
            f"{count_of(len(found), 'image has', 'images have')} a label that is likely wrong",
            done,
            tuple(
                examined.example(row, detail)
                for row, detail in zip(found[:MAX_EXAMPLES], details, strict=False)
            ),
        )
    )
    return findings, sorted(aside)


def _large_enough(examined: Examined, units: Rows, rows: Rows) -> Rows:
    labels = examined.labels[rows]
    keep = np.zeros(len(rows), dtype=bool)
    for label in np.unique(labels):
        own = labels == label
        keep[own] = len(np.unique(units[rows[own]])) >= _LEAST_OF_CLASS
    return rows[keep]


def _described(
    examined: Examined, rows: Rows, on_progress: Step
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    pixels, slopes = [], []
    for start in range(0, len(rows), _BATCH):
        one, two = describe(examined.images(rows[start : start + _BATCH]))
        pixels.append(one)
        slopes.append(two)
        on_progress("describe images", min(start + _BATCH, len(rows)), len(rows))
    return np.concatenate(pixels), np.concatenate(slopes)


def held_out_probabilities(
    described: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    labels: Rows,
    units: Rows,
    settings: Settings,
    on_progress: Step,
) -> npt.NDArray[np.float64]:
    """Return (n, K) the probabilities of each row by a classifier that never saw its unit."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    pixels, slopes = described
    classes = int(labels.max()) + 1
    probabilities = np.full((len(labels), classes), 1 / classes)
    state = int(numpy_generator(settings.seed, "label folds").integers(2**31))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=state)
    with threadpool_limits(limits=settings.threads), warnings.catch_warnings():
        # A fit that has not quite settled after 200 steps ranks the labels all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for done, (train, held) in enumerate(folds.split(pixels, labels, units), start=1):
            if len(np.unique(labels[train])) > 1:
                components = min(_COMPONENTS, len(train), pixels.shape[1])
                pca = PCA(components, svd_solver="covariance_eigh", random_state=state)
                fitted = pca.fit_transform(pixels[train])
                model = make_pipeline(
                    StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=_STEPS)
                )
                model.fit(np.hstack((fitted, slopes[train])), labels[train])
                told = model.predict_proba(np.hstack((pca.transform(pixels[held]), slopes[held])))
                probabilities[np.ix_(held, model.classes_)] = told
                absent = np.setdiff1d(np.arange(classes), model.classes_)
                probabilities[np.ix_(held, absent)] = 0.0
            on_progress("cross-validate labels", done, _FOLDS)
    return probabilities


def disputed(labels: Rows, probabilities: npt.NDArray[np.float64]) -> Rows:
    """Return the rows with a likely wrong label, the least believed first.

    Args:
        labels: (n,) given labels, in [0, K).
        probabilities: (n, K) by a classifier that never saw the row.
    """
    given = probabilities[np.arange(len(labels)), labels]
    odds = np.round(given / probabilities.max(axis=1), 6)
    rows = np.flatnonzero(odds < _LEAST_ODDS)
    return np.asarray(rows[np.lexsort((rows, odds[rows]))], dtype=np.int64)
