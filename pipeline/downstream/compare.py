"""Gains of arms over one baseline, paired by split, seed and test image, with intervals.

The estimator. d[p, s, i] is 1 where an arm is right and the baseline wrong on test image i with
seed s in split p, -1 the other way round, else 0. The gain of class k is the mean of d over its
test images, then seeds, then splits; the gain in balanced accuracy is the mean over classes.

Its variance has two crossed sources: images, and replicates (seeds; whole splits where there are
several, each the mean of its seeds). As in a two-way layout without replication

    V = V_images + max(V_replicates - V_both, 0)

where V_images and V_replicates are the variances between images (clustered by id, so that splits
may share images) and between replicates, and V_both is what one image in one replicate adds to
each of them (Searle, Casella & McCulloch 1992, Variance Components, ch. 4; the same inclusion and
exclusion: Cameron, Gelbach & Miller 2011, JBES 29, eq. 2.5). V_replicates rests on few numbers, so
the second term is not let below what classes that move independently and alike would add, nor
below what seeds within splits say.

Images of one class and one group (one patient, near duplicates) stand for each other and count as
one draw, a unit: their sum takes the image's place in the variances and the draws.

The bootstrap. A resample draws the images of each class with replacement, by id, and gives each
replicate a normal weight (the wild bootstrap: with four seeds, drawing with replacement knows 35
outcomes). All arms and classes share the draws, so their resampled gains are correlated as the
gains are. To first order in both weights, rescaled to V, which a plain bootstrap over few seeds
misses by (S - 1) / S. The ends of an interval are the percentiles, moved outward by t / z with
Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2, 110-114): the expanded percentile
interval of Hesterberg (2015, The American Statistician 69, section 5.3) for two sources.
docs/statistics.md has the simulated error rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm, t

from pipeline.errors import StageError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_CHUNK_WEIGHTS = 4_000_000  # image weights held at once: about 100 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in the unit of the estimate.

    Attributes:
        value: the estimate from the data themselves.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SplitOutcomes:
    """What every arm got right on the test rows of one split of the data.

    Images of one class and group were not drawn one by one: they count as one draw, a unit.

    Attributes:
        labels: (N,) class of each test image, in [0, K).
        ids: (N,) identity of each image; equal ids in several splits are one image.
        correct: arm -> (S, N), is it right with seed s on image i? Equal S and seeds for all arms.
        groups: N, group of each image (one patient, near duplicates), its id where it is alone;
            None where all are.
    """

    labels: Labels
    ids: npt.NDArray[np.str_]
    correct: Mapping[str, Bools]
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class ArmGain:
    """Gains of one arm over the baseline, in [-1, 1]; positive where the arm is better.

    Attributes:
        balanced_accuracy: gain in balanced accuracy, with its own interval.
        simultaneous: the same gain; holds for all arms of the call at once.
        tail: mean gain in recall of the tail classes.
        classes: gain in recall of each class, in label order.
        classes_simultaneous: the same gains; hold for all classes of this arm at once.
        standard_error: of the gain in balanced accuracy.
        draws: (R,) resampled gains in balanced accuracy, of that standard error.
    """

    balanced_accuracy: Interval
    simultaneous: Interval
    tail: Interval
    classes: tuple[Interval, ...]
    classes_simultaneous: tuple[Interval, ...]
    standard_error: float
    draws: Floats


@dataclass(frozen=True)
class _Parts:
    """One arm against the baseline: U replicates, K classes, N distinct units.

    Attributes:
        gains: (U, K) gain of each class in each replicate.
        within: (K, K) covariance of the mean gain by seeds within splits; zeros for one split.
        influence: (U, N) what each unit adds to the mean gain of its class, less its mean.
    """

    gains: Floats
    within: Floats
    influence: Floats


@dataclass(frozen=True)
class _Target:
    """Weights of the classes in one wanted gain, and the images of each of those classes."""

    weights: Floats  # (K,)
    images: Labels


def paired_gains(
    splits: Sequence[SplitOutcomes],
    baseline: str,
    others: Sequence[str],
    classes: int,
    tail: Sequence[int],
    resamples: int,
    confidence: float,
    random: np.random.Generator,
) -> dict[str, ArmGain]:
    """Return the gain of each of `others` over `baseline`; see the module's text.

    Intervals that hold at once use the distribution of the largest |resampled gain - gain| /
    standard error (Westfall & Young 1993, section 2.6; Romano & Wolf 2005, Econometrica 73,
    section 5). No interval is narrower on either side than `unseen_difference`: alike on every
    image is no proof of being alike.

    Args:
        splits: one entry a split; the same number of seeds for every arm of a split.
        baseline: the arm to compare with.
        others: the arms to compare, at least one.
        classes: number of classes K; every class must occur in each split.
        tail: labels of the thin classes, at least one.
        resamples: bootstrap resamples R, at least 100.
        confidence: level of the intervals, in (0, 1).
        random: generator of the resamples.

    Raises:
        StageError: shapes do not pair, a class has no test image, an id has two labels, there are
            fewer than two replicates (seeds, or splits), or a number above is out of its range.
    """
    _check(splits, (baseline, *others), classes, resamples, confidence)
    if not others or not tail:
        raise StageError("paired gains: name at least one other arm and one tail class")
    labels, places = _index_units(splits)
    counts = np.bincount(labels, minlength=classes)
    parts = [_split_into_parts(splits, baseline, arm, classes, labels, places) for arm in others]
    images = _count_images(splits, classes)
    targets = [_target(range(classes), images), _target(tail, images)]
    targets += [_target([k], images) for k in range(classes)]
    errors, freedom = _standard_errors(parts, targets, labels, counts)
    draws = _draw(parts, targets, labels, counts, errors, resamples, random)  # (R, J, T), spread 1
    values = np.array([[w.weights @ part.gains.mean(axis=0) for w in targets] for part in parts])
    alpha = 1.0 - confidence
    floors = np.array([unseen_difference(target.images, alpha) for target in targets])

    # (J, T) distances from the value, in standard errors and expanded to t.
    ends = np.quantile(draws, [alpha / 2.0, 1.0 - alpha / 2.0], axis=0)
    below, above = ends * errors * t.ppf(1.0 - alpha / 2.0, freedom) / norm.ppf(1.0 - alpha / 2.0)
    own = _intervals(values, np.minimum(below, -floors), np.maximum(above, floors))
    arms_at_once = _largest(draws[:, :, :1], confidence, axis=(1, 2))  # one level for all arms
    classes_at_once = _largest(draws[:, :, 2:], confidence, axis=(2,))  # (J,)
    gains = {}
    for j, arm in enumerate(others):
        overall, tail_gain, *by_class = own[j]
        gains[arm] = ArmGain(
            overall,
            _widen(overall, errors[j, 0], freedom[j, 0], float(arms_at_once), targets[0].images),
            tail_gain,
            tuple(by_class),
            tuple(
                _widen(
                    interval,
                    errors[j, k + 2],
                    freedom[j, k + 2],
                    float(classes_at_once[j]),
                    targets[k + 2].images,
                )
                for k, interval in enumerate(by_class)
            ),
            float(errors[j, 0]),
            values[j, 0] + errors[j, 0] * draws[:, j, 0],
        )
    return gains


def count_units(split: SplitOutcomes, classes: int) -> tuple[int, ...]:
    """Return the test images of each class, those of one group counted once."""
    labels, _ = _index_units([split])
    return tuple(np.bincount(labels, minlength=classes).tolist())


def resampled_accuracies(
    right: Floats, split: SplitOutcomes, classes: int, resamples: int, random: np.random.Generator
) -> Floats:
    """Return what other test images would add to balanced accuracies.

    Args:
        right: (A, N) share of seeds with which each of A arms is right on each test image.
        split: the test images; `correct` is not looked at.
        classes: number of classes K; every class must occur.
        resamples: R.
        random: generator of the resamples.

    Returns:
        (R, A), around 0: units are drawn within their class, the same for all arms.
    """
    labels, (unit,) = _index_units([split])
    of_class = np.eye(classes)[split.labels]
    share = of_class / of_class.sum(axis=0)  # (N, K)
    centred = (right - (right @ share)[:, split.labels]) * share.sum(axis=1) / classes
    influence = _sum_by_unit(centred, unit, len(labels)).T  # (units, A)
    found = np.zeros((resamples, len(right)))
    for k in range(classes):
        found += _resample_images(influence[labels == k], resamples, random)
    return found


def unseen_difference(test_images: npt.ArrayLike, alpha: float) -> float:
    """Return how large a gain or loss may be of which no test image shows anything.

    n images without any difference allow 1 - (alpha / 2)^(1 / n) (Clopper & Pearson 1934; the rule
    of three). Any classes may be those that differ unseen; of m of K, whose images are n together,
    the mean over all K shows m / K of it. With equal classes that is most for all of them, else
    perhaps for the smallest ones alone.

    Args:
        test_images: (K,) those of each of the classes whose mean gain is meant, 1 or more.
        alpha: chance of being wrong on either side, both together, in (0, 1).

    Returns:
        A difference in mean recall, in (0, 1).
    """
    together = np.cumsum(np.sort(np.asarray(test_images, dtype=np.float64)))
    share = np.arange(1, len(together) + 1) / len(together)
    return float(np.max(share * (1.0 - (alpha / 2.0) ** (1.0 / together))))


def _check(
    splits: Sequence[SplitOutcomes],
    arms: Sequence[str],
    classes: int,
    resamples: int,
    confidence: float,
) -> None:
    if not 0.0 < confidence < 1.0 or resamples < 100:
        raise StageError(
            f"paired gains: confidence {confidence} must lie between 0 and 1, and resamples "
            f"{resamples} must be 100 or more"
        )
    for number, split in enumerate(splits):
        shapes = {arm: split.correct[arm].shape for arm in arms}
        wanted = (len(split.correct[arms[0]]), *split.labels.shape)
        names = {len(split.ids), len(split.ids if split.groups is None else split.groups)}
        if names != {len(split.labels)} or any(s != wanted for s in shapes.values()):
            raise StageError(
                f"paired gains: split {number} has {len(split.labels)} labels, {len(split.ids)} "
                f"ids and outcomes {shapes}, which do not pair; all arms need the same seeds and "
                "test images"
            )
        if not wanted[0] or set(range(classes)) != set(split.labels.tolist()):
            raise StageError(
                f"paired gains: split {number} has no seed, a class without a test image, or a "
                f"label beyond its {classes} classes"
            )
    if len(splits) == 0 or (len(splits) == 1 and len(splits[0].correct[arms[0]]) < 2):
        raise StageError(
            "paired gains: one seed of one split does not show how much seeds differ; train two "
            "seeds or more"
        )


def _index_units(splits: Sequence[SplitOutcomes]) -> tuple[Labels, list[Labels]]:
    """Return the (N,) labels of the distinct units, and which unit each split's images are of."""
    every = np.concatenate([split.labels for split in splits])
    ids, first, place = np.unique(
        np.concatenate([split.ids for split in splits]), return_index=True, return_inverse=True
    )
    torn = np.flatnonzero(every[first][place] != every)
    if len(torn):
        raise StageError(
            f"paired gains: image {ids[place[torn[0]]][:12]} has two labels; run prepare again so "
            "that every split takes its labels from the same data"
        )
    numbers: dict[tuple[str, int], int] = {}
    group = np.array(
        [
            numbers.setdefault((name, label), len(numbers))
            for split in splits
            for name, label in zip(
                split.ids.tolist() if split.groups is None else split.groups,
                split.labels.tolist(),
                strict=True,
            )
        ]
    )
    # A group may have another name in another split: what shares an image is one unit all the same.
    links = coo_array(
        (np.ones(len(place), dtype=bool), (place, len(ids) + group)),
        shape=(len(ids) + len(numbers),) * 2,
    )
    unit = connected_components(links, directed=False)[1][place]
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    ends = np.cumsum([len(split.ids) for split in splits])[:-1]
    return every[first], np.split(unit, ends)


def _split_into_parts(
    splits: Sequence[SplitOutcomes],
    baseline: str,
    arm: str,
    classes: int,
    labels: Labels,
    places: Sequence[Labels],
) -> _Parts:
    gains, influence = [], []
    within = np.zeros((classes, classes))
    for split, place in zip(splits, places, strict=True):
        difference = split.correct[arm].astype(np.float64) - split.correct[baseline]  # (S, n)
        of_class = np.eye(classes)[split.labels]  # (n, K)
        mean = of_class / of_class.sum(axis=0)
        by_seed = difference @ mean  # (S, K)
        seeds = len(difference)
        if len(splits) > 1:
            if seeds > 1:
                spread = np.atleast_2d(np.cov(by_seed, rowvar=False))
                within += spread / seeds / len(splits) ** 2
            difference, by_seed = difference.mean(axis=0)[None], by_seed.mean(axis=0)[None]
        replicates = seeds if len(splits) == 1 else len(splits)
        centred = (difference - by_seed[:, split.labels]) * mean.sum(axis=1) / replicates
        gains.append(by_seed)
        influence.append(_sum_by_unit(centred, place, len(labels)))
    return _Parts(np.concatenate(gains), within, np.concatenate(influence))


def _sum_by_unit(values: Floats, place: Labels, units: int) -> Floats:
    """Return the (A, units) sums of (A, n) values over the images of each unit."""
    table = np.zeros((len(values), units))
    for row, each in zip(table, values, strict=True):
        np.add.at(row, place, each)
    return table


def _count_images(splits: Sequence[SplitOutcomes], classes: int) -> Labels:
    """Return the (K,) distinct test images of each class."""
    _, first = np.unique(np.concatenate([split.ids for split in splits]), return_index=True)
    labels = np.concatenate([split.labels for split in splits])[first]
    return np.bincount(labels, minlength=classes)


def _target(wanted: Sequence[int], images: Labels) -> _Target:
    weights = np.zeros(len(images))
    weights[list(wanted)] = 1.0 / len(set(wanted))
    return _Target(weights, images[sorted(set(wanted))])


def _standard_errors(
    parts: Sequence[_Parts], targets: Sequence[_Target], labels: Labels, counts: Labels
) -> tuple[Floats, Floats]:
    """Return the (J, T) standard errors and their degrees of freedom, at least 1."""
    squares = np.stack([target.weights for target in targets]) ** 2  # (T, K)
    sizes = np.maximum(counts, 2)
    unbiased = sizes / (sizes - 1.0)
    errors, freedom = [], []
    for part in parts:
        replicates = len(part.gains)
        own = part.influence - part.influence.mean(axis=0)
        images = unbiased * _by_class(part.influence.sum(axis=0) ** 2, labels, counts)
        # A class of one image does not show how much its images differ: as much as others' do.
        alone = counts < 2
        if alone.any():
            variance = (images * counts)[~alone]
            images[alone] = variance.mean() if len(variance) else 1.0
        both = unbiased * _by_class((own**2).sum(axis=0), labels, counts)
        both *= replicates / (replicates - 1.0)
        covariance = np.atleast_2d(np.cov(part.gains, rowvar=False)) / replicates  # (K, K)
        # What replicates add to one class beyond single images, mean over classes.
        pooled = float((np.diag(covariance) - both).mean())
        for target, square in zip(targets, squares, strict=True):
            w = target.weights
            shared = float(square @ both)
            replicate_share = max(
                float(w @ covariance @ w) - shared,
                float(w @ part.within @ w) - shared,
                float(square.sum()) * pooled,
                0.0,
            )
            image_share = float(square @ images)
            loss = replicate_share**2 / (replicates - 1.0)
            loss += float((square * images) ** 2 @ (1.0 / (sizes - 1.0)))
            variance_of_gain = image_share + replicate_share
            errors.append(np.sqrt(variance_of_gain))
            freedom.append(max(variance_of_gain**2 / loss, 1.0) if loss > 0.0 else 1.0)
    shape = (len(parts), len(targets))
    return np.reshape(errors, shape), np.reshape(freedom, shape)


def _by_class(values: Floats, labels: Labels, counts: Labels) -> Floats:
    return np.asarray(np.bincount(labels, weights=values, minlength=len(counts)), dtype=np.float64)


def _draw(
    parts: Sequence[_Parts],
    targets: Sequence[_Target],
    labels: Labels,
    counts: Labels,
    errors: Floats,
    resamples: int,
    random: np.random.Generator,
) -> Floats:
    """Return (R, J, T) resampled gains less the gains, over their standard errors."""
    replicates = len(parts[0].gains)
    weights = np.stack([target.weights for target in targets])  # (T, K)
    influence = np.stack([part.influence.sum(axis=0) for part in parts], axis=1)  # (N, J)
    images = np.zeros((resamples, len(parts), len(targets)))
    for k in range(len(counts)):
        drawn = _resample_images(influence[labels == k], resamples, random)  # (R, J)
        images += drawn[:, :, None] * weights[:, k]
    deviations = np.stack([part.gains - part.gains.mean(axis=0) for part in parts])  # (J, U, K)
    # Normal weights over U values about their mean: variance of the mean with U - 1 below.
    normal = random.standard_normal((resamples, replicates))
    scale = np.sqrt(replicates * (replicates - 1.0))
    between = np.einsum("ru,juk,tk->rjt", normal, deviations, weights, optimize=True) / scale
    image_variance, between_variance = images.var(axis=0), between.var(axis=0)
    # The replicates' share of V is what the images do not explain.
    wanted = np.clip(errors**2 - image_variance, 0.0, None)
    ratio = np.divide(
        wanted, between_variance, out=np.zeros_like(wanted), where=between_variance > 1e-24
    )
    both = images + np.sqrt(ratio) * between
    spread = both.std(axis=0)
    centred = both - both.mean(axis=0)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12))


def _resample_images(influence: Floats, resamples: int, random: np.random.Generator) -> Floats:
    """Return (R, J) sums of the (n, J) influence of one class over n units drawn again.

    Their variance has n - 1 below, as V has.
    """
    n = len(influence)
    drawn = np.empty((resamples, influence.shape[1]))
    rows = max(1, _CHUNK_WEIGHTS // n)
    for start in range(0, resamples, rows):
        part = drawn[start : start + rows]
        picked = random.integers(n, size=(len(part), n))
        picked += np.arange(len(part))[:, None] * n
        times = np.bincount(picked.ravel(), minlength=len(part) * n).reshape(len(part), n)
        part[:] = times.astype(np.float64) @ influence
    drawn *= np.sqrt(n / max(n - 1.0, 1.0))
    return drawn


def _largest(draws: Floats, confidence: float, axis: tuple[int, ...]) -> Floats:
    """Return the quantile over resamples of the largest |draw| along `axis`."""
    return np.asarray(np.quantile(np.abs(draws).max(axis=axis), confidence, axis=0))


def _intervals(values: Floats, below: Floats, above: Floats) -> list[list[Interval]]:
    low, high = np.clip(values + below, -1.0, 1.0), np.clip(values + above, -1.0, 1.0)
    return [
        [Interval(float(v), float(a), float(b)) for v, a, b in zip(*row, strict=True)]
        for row in zip(values, low, high, strict=True)
    ]


def _widen(own: Interval, error: float, freedom: float, largest: float, images: Labels) -> Interval:
    """Return the interval at once with others: `largest` normal standard errors, as t."""
    alpha = float(2.0 * norm.sf(largest))
    half = max(error * t.isf(alpha / 2.0, freedom), unseen_difference(images, alpha))
    low, high = max(own.value - half, -1.0), min(own.value + half, 1.0)
    return Interval(own.value, float(min(low, own.low)), float(max(high, own.high)))
