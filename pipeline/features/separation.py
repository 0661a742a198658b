"""Does an encoder tell the user's classes apart? A metric on features that do not says nothing.

Held-out rows are compared with training rows in feature space, by the Euclidean distance that the
metrics on features use. Two questions are asked of it: whether the nearest rows name the class
better than chance, and for each pair of classes, whether closeness ranks their rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from pipeline.errors import StageError
from pipeline.features.frozen import Features
from pipeline.seeds import numpy_generator

NEIGHBOURS = 5
LEVEL = 0.01  # of the test of all classes against chance
PAIR_LEVEL = 0.05  # of the test of each pair
LEAST_RANKING = 0.7  # a pair below this area under the curve counts as mixed
LEAST_HELD_OUT = 5  # rows of a class, below which its pairs are not judged
_MOST_TRAINING, _MOST_HELD_OUT = 500, 200  # rows of a class: more would only take longer
_PERMUTATIONS = 1999
_NAMED = 5  # pairs that a warning names

_Labels = npt.NDArray[np.int64]
_Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Separation:
    """How well an encoder tells classes apart, on held-out rows.

    Attributes:
        balanced_accuracy: mean recall of the classes, 0 to 1.
        low: lower end of its 95 % interval, given the training rows.
        high: upper end.
        chance: balanced accuracy of guesses, 1 / classes.
        p_value: share of permuted labels that do as well, of the 1,999 and the labels themselves.
        recalls: class -> share of its held-out rows that are named rightly.
        ranking: mean over pairs of classes of the area under the curve, 0.5 by chance, 1 at best;
            nan where no pair has enough rows.
        mixed: pairs of classes that are not told apart, the worst first.
        unjudged: classes with too few held-out rows to be named in `mixed`.
        separates: whether the classes are told apart better than by chance: p_value <= 0.01.
        warning: what to tell the user, or None.
    """

    balanced_accuracy: float
    low: float
    high: float
    chance: float
    p_value: float
    recalls: dict[str, float]
    ranking: float
    mixed: tuple[tuple[str, str], ...]
    unjudged: tuple[str, ...]
    separates: bool
    warning: str | None


def separation(
    training: Features,
    training_labels: npt.NDArray[np.integer],
    held_out: Features,
    held_out_labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    seed: int,
) -> Separation:
    """Judge an encoder by the nearest training rows of held-out ones.

    The 5 nearest training rows vote, each with 1 / the number of rows of its class, so that a
    large class does not win by being everywhere; the nearest row decides a tie. Guesses that
    ignore the image have a balanced accuracy of 1 / classes in the mean, whatever they are, and
    permuting the held-out labels gives their distribution exactly.

    A pair is ranked by how much nearer a row is to one class than to the other (mean distance to
    the 5 nearest rows of each): the area under the curve of the two classes' rows (Hand and Till
    2001). It is mixed where that is below 0.7, or where a one-sided rank test does not exclude
    chance at 0.05. The area does not depend on how many rows each class has.

    At most 500 training and 200 held-out rows of a class are used, drawn with the seed. Equal
    features for all images are no error: nothing is told apart, and the warning says so.

    Args:
        training: (N, D), finite; rows that the encoder may have been trained on.
        training_labels: (N,) index of each row's class.
        held_out: (M, D), rows that it has not seen.
        held_out_labels: (M,).
        classes: names.
        seed: of the rows drawn and of the permutations.

    Raises:
        StageError: features that are not (N, D) and finite, or fewer than two classes that have
            rows on both sides.
    """
    _require_finite("training", training, training_labels)
    _require_finite("held-out", held_out, held_out_labels)
    if training.shape[1] != held_out.shape[1]:
        raise StageError(
            f"separation: {training.shape[1]} features of training rows and {held_out.shape[1]} "
            "of held-out ones; take both from the same encoder"
        )
    present = [c for c in range(len(classes)) if c in training_labels and c in held_out_labels]
    if len(present) < 2:
        raise StageError(
            f"separation: {len(present)} of {len(classes)} classes have both training and "
            "held-out rows; telling classes apart needs two"
        )
    names = [classes[c] for c in present]
    train_rows = _draw(training_labels, present, _MOST_TRAINING, seed, "training")
    held_rows = _draw(held_out_labels, present, _MOST_HELD_OUT, seed, "held-out")
    labels = np.repeat(np.arange(len(present)), [len(rows) for rows in held_rows])
    nearest = _nearest(held_out[np.concatenate(held_rows)], [training[rows] for rows in train_rows])
    guesses = _vote(nearest, np.asarray([len(rows) for rows in train_rows]))

    counts = np.bincount(labels)
    recalls = np.bincount(labels[guesses == labels], minlength=len(present)) / counts
    accuracy, reach = float(recalls.mean()), 1.96 * _error(recalls, counts)
    p_value = _permuted(guesses, labels, accuracy, seed)
    closeness = [np.nanmean(one, axis=1) for one in nearest]
    pairs = _rank_pairs(closeness, labels, counts)
    mixed = tuple(
        (names[a], names[b])
        for (a, b), (area, p) in sorted(pairs.items(), key=lambda item: item[1][0])
        if area < LEAST_RANKING or p > PAIR_LEVEL
    )
    separates = p_value <= LEVEL
    chance = 1 / len(present)
    constant = bool((np.ptp(training, axis=0) == 0).all() and (np.ptp(held_out, axis=0) == 0).all())
    return Separation(
        balanced_accuracy=accuracy,
        low=max(0.0, accuracy - reach),
        high=min(1.0, accuracy + reach),
        chance=chance,
        p_value=p_value,
        recalls={name: float(recall) for name, recall in zip(names, recalls, strict=True)},
        ranking=float(np.mean([area for area, _ in pairs.values()])) if pairs else math.nan,
        mixed=mixed,
        unjudged=tuple(
            name
            for c, name in enumerate(classes)
            if c not in present or counts[present.index(c)] < LEAST_HELD_OUT
        ),
        separates=separates,
        warning=_warning(separates, constant, accuracy, chance, mixed, len(pairs)),
    )


def _require_finite(which: str, features: Features, labels: npt.NDArray[np.integer]) -> None:
    if features.ndim != 2 or not features.shape[1] or labels.shape != (len(features),):
        raise StageError(
            f"separation: {which} features of shape {features.shape} for labels of shape "
            f"{labels.shape}; expected (N, D) and (N,)"
        )
    if not np.isfinite(features).all():
        raise StageError(
            f"separation: {which} features hold values that are not finite; look for broken "
            "images or an encoder that overflows"
        )


def _draw(
    labels: npt.NDArray[np.integer], present: list[int], most: int, seed: int, which: str
) -> list[_Labels]:
    """Return the rows to use of each class."""
    random = numpy_generator(seed, "separation", which)
    found = [np.flatnonzero(labels == c) for c in present]
    return [
        np.sort(random.choice(rows, most, replace=False)) if len(rows) > most else rows
        for rows in found
    ]


def _nearest(held_out: Features, training: list[Features]) -> list[_Distances]:
    """Return for each class (M, 5): sorted distances to its nearest rows, nan where it has fewer.

    Squared distances come from products: centred first and in 64 bits, little cancels.
    """
    centre = np.concatenate(training).mean(axis=0, dtype=np.float64)
    x = held_out - centre  # (M, D)
    x_squares = np.einsum("md,md->m", x, x)
    found = []
    for rows in training:
        y = rows - centre  # (n, D)
        squares = x_squares[:, None] - 2 * (x @ y.T) + np.einsum("nd,nd->n", y, y)  # (M, n)
        k = min(NEIGHBOURS, len(rows))
        near = np.sort(np.partition(squares, k - 1, axis=1)[:, :k], axis=1)
        distances = np.full((len(x), NEIGHBOURS), np.nan)
        distances[:, :k] = np.sqrt(near.clip(0))
        found.append(distances)
    return found


def _vote(nearest: list[_Distances], sizes: npt.NDArray[np.integer]) -> _Labels:
    """Return (M,) guesses: the class with the largest share of its rows among the 5 nearest."""
    distances = np.concatenate(nearest, axis=1)  # (M, 5 K), class by class
    owners = np.repeat(np.arange(len(nearest)), NEIGHBOURS)
    first = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]  # nan comes last
    votes = np.zeros((len(distances), len(nearest)))
    for rank in range(NEIGHBOURS):
        columns = first[:, rank]
        real = ~np.isnan(np.take_along_axis(distances, columns[:, None], axis=1)[:, 0])
        # The nearest counts a trifle more, which decides ties and nothing else.
        weight = (1 + 1e-6 * (rank == 0)) / sizes[owners[columns]]
        np.add.at(votes, (np.flatnonzero(real), owners[columns[real]]), weight[real])
    guesses: _Labels = votes.argmax(axis=1)
    return guesses


def _error(recalls: npt.NDArray[np.float64], counts: npt.NDArray[np.integer]) -> float:
    """Return the standard error of the mean recall.

    Each recall is drawn towards 1/2 by two rows first (Agresti and Coull 1998), so that five hits
    of five do not count as certain.
    """
    drawn = (recalls * counts + 2) / (counts + 4)
    return float(np.sqrt((drawn * (1 - drawn) / (counts + 4)).sum()) / len(recalls))


def _permuted(guesses: _Labels, labels: _Labels, accuracy: float, seed: int) -> float:
    """Return the permutation p-value (Phipson and Smyth 2010: the labels themselves count)."""
    random = numpy_generator(seed, "separation", "permutations")
    weight = 1.0 / (np.bincount(labels) * len(np.bincount(labels)))
    as_good = 1
    for _ in range(_PERMUTATIONS):
        shuffled = random.permutation(labels)
        as_good += float(weight[shuffled[shuffled == guesses]].sum()) >= accuracy - 1e-9
    return as_good / (_PERMUTATIONS + 1)


def _rank_pairs(
    closeness: list[_Distances], labels: _Labels, counts: npt.NDArray[np.integer]
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return pair of classes -> area under the curve and p-value, where both have enough rows."""
    judged = [c for c in range(len(counts)) if counts[c] >= LEAST_HELD_OUT]
    found = {}
    for a, b in combinations(judged, 2):
        nearer_a = closeness[b] - closeness[a]  # (M,)
        of_a, of_b = nearer_a[labels == a], nearer_a[labels == b]
        if np.ptp(np.concatenate([of_a, of_b])) == 0:
            found[a, b] = 0.5, 1.0  # all tied, where the test has no variance to divide by
            continue
        test = mannwhitneyu(of_a, of_b, alternative="greater")
        found[a, b] = float(test.statistic) / (len(of_a) * len(of_b)), float(test.pvalue)
    return found


def _warning(
    separates: bool,
    constant: bool,
    accuracy: float,
    chance: float,
    mixed: tuple[tuple[str, str], ...],
    pairs: int,
) -> str | None:
    named = ", ".join(f"{a} and {b}" for a, b in mixed[:_NAMED])
    more = f" and {len(mixed) - _NAMED} more" if len(mixed) > _NAMED else ""
    which = f"it does not tell apart {named}{more}, of {pairs} pairs judged" if mixed else ""
    if constant:
        return (
            "the encoder gives every image the same features: metrics on them say nothing; use "
            "another encoder"
        )
    if not separates:
        return (
            "the encoder names the class of held-out images no better than chance "
            f"({accuracy:.2f}, chance {chance:.2f}): metrics on its features say little about "
            f"these classes{'; ' + which if which else ''}; use another encoder"
        )
    if mixed:
        return f"{which}: metrics by class cannot be trusted between them"
    return None
