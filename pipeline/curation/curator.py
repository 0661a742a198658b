"""The curator: judges candidates shard after shard, and says of each why it stays or goes.

Every score of a candidate is compared with the same score of real rows that were kept out of the
score: validation rows, and training rows left out of their own search. The rules together cost a
stated share of real rows, so that a candidate that is as good as a real image stays.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.curation.artefacts import Texture, fit_texture, measure_texture
from pipeline.curation.copies import Near, NearIndex
from pipeline.curation.limits import (
    COPY_COLUMNS,
    SUPPORT_COLUMNS,
    Limits,
    Thresholds,
    fails,
    fit_limits,
    order_limit,
)
from pipeline.curation.realism import RealSupport, Support
from pipeline.curation.repeats import Repeats
from pipeline.curation.scores import Scores
from pipeline.curation.selection import DEFAULT_RULES, RULES, Reason, Rule
from pipeline.data.images import Images, flat_pixels
from pipeline.data.store import Samples
from pipeline.errors import StageError
from pipeline.features.judge import Ensemble
from pipeline.metrics.memorization import COPY_RATIO, Nearest, RealIndex

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]
Embed = Callable[[Images], Features]

_ENOUGH_ROWS = 100  # validation rows; with fewer, training rows judged out of fold join them
_LEAST_ROWS = 20  # validation rows, to say anything of features
_NEVER = 1e6  # a limit that nothing exceeds
_MOST_ROWS = 2000  # of either, for the limits: more would cost time and move none of them
_ID_BYTES = 16  # half of a sha256 tells any number of images apart


@dataclass(frozen=True)
class Judged:
    """What is known of N candidates.

    Attributes:
        scores: of each one.
        reasons: of each one; the first rule that fails counts, in the order of `RULES`.
        features: (N, D) that realism was judged by.
        fails: (N, R) what each rule says by itself, columns as in `rules`.
        rules: enabled ones, in the order of `RULES`.
    """

    scores: Scores
    reasons: list[Reason]
    features: Features
    fails: Masks
    rules: tuple[Rule, ...]

    def failed(self) -> dict[Rule, int]:
        """Return how many candidates each enabled rule would reject by itself."""
        return {rule: int(self.fails[:, i].sum()) for i, rule in enumerate(self.rules)}


class Curator:
    """Judges candidates one shard after the other, and remembers what it has seen.

    The outcome depends on the order of the candidates of a class, and not on how they are cut into
    shards.
    """

    def __init__(
        self,
        training: Samples,
        validation: Samples,
        ensemble: Ensemble,
        embed: Embed | None = None,
        rules: Collection[Rule] = DEFAULT_RULES,
        quantile: float = 0.03,
        typical_share: float = 0.1,
        copy_ratio: float = COPY_RATIO,
        real_ids: Iterable[str] = (),
    ) -> None:
        """Lay out the real rows and fit the limits.

        With at least 100 validation rows, they alone set the limits of the labels. With fewer, or
        none, training rows join them by their out-of-fold probabilities, which are of one judge
        and so less sure than the mean of all: the limits get milder. The limits of realism,
        off_class and typical are of validation rows always, since the judges' features know the
        training rows by heart; with fewer than 20 of them these rules say nothing. The limits of
        copies are of both, each training row left out of its own search with all of its group.

        Args:
            training: real rows, two at least.
            validation: real rows kept out of `ensemble`; may be none.
            ensemble: of judges, cross-fitted on the training rows.
            embed: encoder of realism, (N, H, W, C) uint8 -> (N, D); None: the ensemble's own.
            rules: enabled ones; the same pixels again are rejected whatever they are.
            quantile: share of real rows that all rules but `typical` may reject together.
            typical_share: share of real rows that `typical` rejects.
            copy_ratio: least nearest over second-nearest pixel distance of rule `copies`.
            real_ids: sha256 in hexadecimal of all real rows' pixels, whatever their split.

        Raises:
            StageError: fewer than 2 training rows, an unknown rule, features that are not finite,
                or an ensemble of other rows.
        """
        unknown = sorted(set(rules) - set(RULES))
        if unknown:
            raise StageError(f"curation: unknown rule {unknown[0]!r}; known are {', '.join(RULES)}")
        if len(ensemble.out_of_fold) != len(training):
            raise StageError(
                f"curation: the judges were fitted on {len(ensemble.out_of_fold)} rows and there "
                f"are {len(training)} training rows; fit them again"
            )
        self.rules: tuple[Rule, ...] = tuple(rule for rule in RULES if rule in rules)
        self._ensemble = ensemble
        self._embed = embed
        self._ids = np.asarray(training.ids)
        number = {group: i for i, group in enumerate(dict.fromkeys(training.groups))}
        self._groups = np.asarray([number[group] for group in training.groups], dtype=np.int64)
        self._pixels = RealIndex(flat_pixels(training.images))
        self._near = NearIndex(training.images, self._groups)
        features = ensemble.embed(training.images) if embed is None else embed(training.images)
        self._support = RealSupport(features, training.labels)
        self._copy_ratio = copy_ratio
        self._fit(training, validation, features, quantile, typical_share)
        self._repeats = Repeats()
        self._seen = {bytes.fromhex(one)[:_ID_BYTES] for one in real_ids}

    @property
    def thresholds(self) -> Thresholds:
        """Return all limits."""
        by_label = tuple(self._limits["confidence"].tolist())
        others = {n: float(limit) for n, limit in self._limits.items() if n != "confidence"}
        return Thresholds(confidence=by_label, **others)

    def rules_on_validation(self) -> dict[Rule, float]:
        """Return the share of real rows that each enabled rule rejects by itself.

        Of the rows that set the limits: the validation rows, and the training rows as well where
        fewer than 100 of those are there. `real_cost` is the share that any of them rejects.
        """
        failed = self._fails(self._reference, self._reference_labels)
        return {rule: float(failed[:, i].mean()) for i, rule in enumerate(self.rules)}

    @property
    def real_cost(self) -> float:
        """Return the share of the same real rows that the enabled rules reject together."""
        return float(self._fails(self._reference, self._reference_labels).any(axis=1).mean())

    def judge(
        self,
        images: Images,
        labels: Labels,
        ids: Sequence[bytes],
        parents: Labels | None = None,
    ) -> Judged:
        """Judge candidates, in the order of their indices.

        Args:
            images: (N, H, W, C) uint8.
            labels: (N,) that they are meant to show.
            ids: sha256 of the pixels, 16 bytes of it at least.
            parents: (N,) training rows that they were made from, if any; the search for copies
                leaves their groups out.

        Raises:
            StageError: features are not finite.
        """
        columns, features = self._measure(images, labels, parents)
        again = self._exact(ids)
        alone = self._fails(columns, labels)
        columns["repeat_closeness"] = self._repeats.judge(
            images,
            labels,
            columns["near_residual"],
            ~again & ~alone.any(axis=1),
            float(self._limits["near_repeat"]) if "repeats" in self.rules else 0.0,
        )
        failed = self._fails(columns, labels)
        reasons: list[Reason] = [
            "repeat" if again[i] else self._reason(columns, failed[i], i, int(labels[i]))
            for i in range(len(labels))
        ]
        return Judged(Scores(columns), reasons, features, failed, self.rules)

    def _fit(
        self,
        training: Samples,
        validation: Samples,
        features: Features,
        quantile: float,
        typical_share: float,
    ) -> None:
        few = len(validation) < _ENOUGH_ROWS
        validation = validation.take(_spread(len(validation), _MOST_ROWS))
        rows = _spread(len(training), _MOST_ROWS)
        held_out, _ = self._measure(validation.images, validation.labels, None)
        own = self._measure_training(training.take(rows), rows, features[rows])
        both = {name: np.concatenate([held_out[name], own[name]]) for name in held_out}
        textures = [
            Texture(
                *(both[name].astype(np.float64) for name in ("spread", "dark", "bright", "rough"))
            )
        ]
        texture = fit_texture(textures)
        self._limits: Limits = {
            name: np.asarray(getattr(texture, name))
            for name in ("spread", "dark", "bright", "rough")
        }
        self._limits["copy_ratio"] = np.asarray(self._copy_ratio)
        labels = np.concatenate([validation.labels, training.labels[rows]])
        both["repeat_closeness"] = Repeats().judge(
            np.concatenate([validation.images, training.images[rows]]),
            labels,
            both["near_residual"],
            np.ones(len(both["near_residual"]), dtype=bool),
            0.0,
        )
        count = len(both["confidence"]) if few else len(validation)
        self._reference: Columns = {name: values[:count] for name, values in both.items()}
        self._reference_labels = labels[:count]
        placed = len(validation) >= _LEAST_ROWS
        pools = {name: both[name] for name in COPY_COLUMNS} | {
            name: held_out[name] if placed else np.full(1, _NEVER) for name in SUPPORT_COLUMNS
        }
        fixed = np.zeros(count, dtype=bool)
        for rule in ("copies", "artefacts"):
            if rule in self.rules:
                fixed |= self._fixed(self._reference, rule)
        self._limits |= fit_limits(
            self._reference,
            self._reference_labels,
            self._ensemble.out_of_fold.shape[1],
            pools,
            fixed,
            self.rules,
            quantile,
        )
        typical = order_limit(pools["support_distance"], typical_share, "low") if placed else 0.0
        self._limits["typical_distance"] = np.asarray(typical)

    def _measure(
        self, images: Images, labels: Labels, parents: Labels | None
    ) -> tuple[Columns, Features]:
        """Return all scores but repeat_closeness, and features."""
        looked = self._ensemble.look(images)
        features = looked.features if self._embed is None else self._embed(images)
        pixels = _flat(images)
        columns = self._columns(
            labels,
            looked.probabilities,
            looked.members,
            self._pixels.nearest(pixels, parents),
            self._near.search(images, None if parents is None else self._groups[parents]),
            measure_texture(images),
            self._support.place(features, labels),
        )
        if parents is not None:
            columns["parent_distance"] = self._pixels.distance_to(pixels, parents)
        return columns, features

    def _measure_training(self, part: Samples, rows: Labels, features: Features) -> Columns:
        """Return the scores of training rows, each without itself."""
        chances = self._ensemble.out_of_fold[rows]
        return self._columns(
            part.labels,
            chances,
            chances[None],
            self._pixels.nearest(flat_pixels(part.images), rows),
            self._near.search(part.images, self._groups[rows]),
            measure_texture(part.images),
            self._support.place(features, part.labels, rows),
        )

    def _columns(
        self,
        labels: Labels,
        chances: Floats,
        members: Floats,
        pixel: Nearest,
        near: Near,
        texture: Texture,
        support: Support,
    ) -> Columns:
        rows = np.arange(len(labels))
        confidence = chances[rows, labels]
        others = chances.copy()
        others[rows, labels] = -np.inf
        near_ids = np.where(near.index < 0, "", self._ids[near.index])
        return {
            "predicted": chances.argmax(axis=1),
            "confidence": confidence.round(6),
            "margin": (confidence - others.max(axis=1)).round(6),
            "disagreement": _disagreement(chances, members).round(6),
            "nearest_id": self._ids[pixel.index],
            "pixel_distance": pixel.distance.round(6),
            "pixel_ratio": pixel.ratio.round(6),
            "near_id": near_ids,
            "near_residual": near.residual,
            "near_closeness": near.closeness,
            "spread": texture.spread.round(6),
            "dark": texture.dark,
            "bright": texture.bright,
            "rough": texture.rough.round(6),
            "support_distance": support.distance,
            "class_ratio": support.ratio,
        }

    def _fails(self, columns: Columns, labels: Labels) -> Masks:
        """Return the (N, R) answers of the enabled rules; `repeats` waits for its turn."""
        failed = np.zeros((len(labels), len(self.rules)), dtype=bool)
        for i, rule in enumerate(self.rules):
            failed[:, i] = fails(columns, labels, self._limits, rule) | self._fixed(columns, rule)
        return failed

    def _fixed(self, columns: Columns, rule: Rule) -> Masks:
        """Return what a rule rejects beyond the limits that are fitted together."""
        limits = self._limits
        if rule == "artefacts":
            return (
                (columns["spread"] < limits["spread"])
                | (columns["dark"] > limits["dark"])
                | (columns["bright"] > limits["bright"])
                | (columns["rough"] > limits["rough"])
            )
        if rule == "typical":
            typical: Masks = columns["support_distance"] < limits["typical_distance"]
            return typical
        failed: Masks = np.zeros(len(columns["confidence"]), dtype=bool)
        if rule == "copies":
            failed = columns["pixel_ratio"] < limits["copy_ratio"]
            if "parent_distance" in columns:
                failed |= columns["parent_distance"] < limits["copy_distance"]
        return failed

    def _reason(self, columns: Columns, failed: Masks, i: int, label: int) -> Reason:
        rule = next((rule for rule, bad in zip(self.rules, failed, strict=True) if bad), None)
        if rule is None:
            return "accepted"
        limits = self._limits
        if rule == "copies":
            if "parent_distance" in columns and (
                columns["parent_distance"][i] < limits["copy_distance"]
            ):
                return "copy_parent"
            ratio = columns["pixel_ratio"][i] < limits["copy_ratio"]
            return "copy_ratio" if ratio else "copy_distance"
        if rule == "artefacts":
            if columns["spread"][i] < limits["spread"]:
                return "blank"
            clipped = any(columns[name][i] > limits[name] for name in ("dark", "bright"))
            return "saturated" if clipped else "noisy"
        if rule == "labels":
            if columns["predicted"][i] != label:
                return "disagrees"
            return "uncertain" if columns["disagreement"][i] > 0.5 else "unsure"
        named: dict[Rule, Reason] = {
            "near_copies": "near_copy",
            "realism": "unreal",
            "off_class": "off_class",
            "typical": "typical",
            "repeats": "near_repeat",
        }
        return named[rule]

    def _exact(self, ids: Sequence[bytes]) -> Masks:
        """Return which pixels were there before, and remember all."""
        again = np.zeros(len(ids), dtype=bool)
        for i, identity in enumerate(ids):
            short = identity[:_ID_BYTES]
            again[i] = short in self._seen
            self._seen.add(short)
        return again


def _disagreement(chances: Floats, members: Floats) -> Floats:
    """Return mutual information over entropy (Houlsby et al. 2011, "BALD", equation 2)."""
    total = _entropy(chances)
    own = _entropy(members).mean(axis=0)
    share: Floats = np.clip((total - own) / np.maximum(total, 1e-6), 0.0, 1.0)
    return share


def _entropy(chances: Floats) -> Floats:
    entropy: Floats = -(chances * np.log(np.maximum(chances, 1e-12))).sum(axis=-1)
    return entropy


def _flat(images: Images) -> Features:
    width = int(np.prod(images.shape[1:]))
    return flat_pixels(images) if len(images) else np.zeros((0, width), dtype=np.float32)


def _spread(count: int, most: int) -> Labels:
    """Return at most `most` of `count` rows, evenly spread."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, most).astype(np.int64)
