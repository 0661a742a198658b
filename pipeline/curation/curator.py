"""The curator: judges candidates shard after shard, and says of each why it stays or goes.

Every score of a candidate is compared with the same score of real rows that were kept out of the
score: validation rows, and training rows left out of their own search. The rules together cost a
stated share of real rows, so that a candidate that is as good as a real image stays.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.curation.artefacts import Texture, fit_texture
from pipeline.curation.limits import (
    COPY_COLUMNS,
    SUPPORT_COLUMNS,
    Limits,
    Thresholds,
    fit_limits,
    order_limit,
)
from pipeline.curation.measuring import Columns, Embed, Features, Labels, RealRows
from pipeline.curation.repeats import Repeats
from pipeline.curation.scores import Scores
from pipeline.curation.selection import MOST_RULES, RULES, Reason, Rule
from pipeline.curation.verdict import Masks, broken, fixed, reason_of
from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.errors import StageError
from pipeline.features.judge import Ensemble
from pipeline.metrics.memorization import COPY_RATIO

_ENOUGH_ROWS = 100  # validation rows; with fewer, training rows judged out of fold join them
_LEAST_ROWS = 20  # validation rows, to say anything of features
_NEVER = 1e6  # a limit that nothing exceeds
_MOST_ROWS = 2000  # of either, for the limits: more would cost time and move none of them
_TEXTURE = ("spread", "dark", "bright", "rough")
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
        rules: Collection[Rule] = MOST_RULES,
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
        self._real = RealRows(training, ensemble, embed)
        self._copy_ratio = copy_ratio
        self._classes = ensemble.out_of_fold.shape[1]
        self._fit(training, validation, quantile, typical_share)
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
        failed = self._broken(self._reference, self._reference_labels)
        return {rule: float(failed[:, i].mean()) for i, rule in enumerate(self.rules)}

    @property
    def real_cost(self) -> float:
        """Return the share of the same real rows that the enabled rules reject together."""
        return float(self._broken(self._reference, self._reference_labels).any(axis=1).mean())

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
        columns, features = self._real.measure(images, labels, parents)
        again = self._exact(ids)
        closeness = np.ones(len(labels))
        if "repeats" in self.rules:
            alone = self._broken(columns, labels)
            closeness = self._repeats.judge(
                images,
                labels,
                columns["near_residual"],
                ~again & ~alone.any(axis=1),
                float(self._limits["near_repeat"]),
            )
        columns["repeat_closeness"] = closeness
        failed = self._broken(columns, labels)
        reasons: list[Reason] = [
            "repeat"
            if again[i]
            else reason_of(columns, i, int(labels[i]), self._limits, self.rules, failed[i])
            for i in range(len(labels))
        ]
        return Judged(Scores.of(columns), reasons, features, failed, self.rules)

    def _fit(
        self, training: Samples, validation: Samples, quantile: float, typical_share: float
    ) -> None:
        few = len(validation) < _ENOUGH_ROWS
        validation = validation.take(_spread(len(validation), _MOST_ROWS))
        rows = _spread(len(training), _MOST_ROWS)
        held_out, _ = self._real.measure(validation.images, validation.labels, None)
        own = self._real.measure_training(rows)
        both = {name: np.concatenate([held_out[name], own[name]]) for name in held_out}
        texture = fit_texture([Texture(*(both[name] for name in _TEXTURE))])
        self._limits: Limits = {name: np.asarray(getattr(texture, name)) for name in _TEXTURE}
        self._limits["copy_ratio"] = np.asarray(self._copy_ratio)
        labels = np.concatenate([validation.labels, training.labels[rows]])
        both["repeat_closeness"] = np.ones(len(labels))
        if "repeats" in self.rules:
            both["repeat_closeness"] = Repeats().judge(
                np.concatenate([validation.images, training.images[rows]]),
                labels,
                both["near_residual"],
                np.ones(len(labels), dtype=bool),
                0.0,
            )
        count = len(both["confidence"]) if few else len(validation)
        self._reference: Columns = {name: values[:count] for name, values in both.items()}
        self._reference_labels = labels[:count]
        placed = len(validation) >= _LEAST_ROWS
        pools = {name: both[name] for name in COPY_COLUMNS} | {
            name: held_out[name] if placed else np.full(1, _NEVER) for name in SUPPORT_COLUMNS
        }
        lost = np.zeros(count, dtype=bool)
        for rule in ("copies", "artefacts"):
            if rule in self.rules:
                lost |= fixed(self._reference, self._limits, rule)
        self._limits |= fit_limits(
            self._reference,
            self._reference_labels,
            self._classes,
            pools,
            lost,
            self.rules,
            quantile,
        )
        if "repeats" not in self.rules:
            self._limits["near_repeat"] = np.zeros(())  # nothing was compared
        typical = order_limit(pools["support_distance"], typical_share, "low") if placed else 0.0
        self._limits["typical_distance"] = np.asarray(typical)

    def _broken(self, columns: Columns, labels: Labels) -> Masks:
        """Return the (N, R) answers of the enabled rules; `repeats` waits for its turn."""
        return broken(columns, labels, self._limits, self.rules)

    def _exact(self, ids: Sequence[bytes]) -> Masks:
        """Return which pixels were there before, and remember all."""
        again = np.zeros(len(ids), dtype=bool)
        for i, identity in enumerate(ids):
            short = identity[:_ID_BYTES]
            again[i] = short in self._seen
            self._seen.add(short)
        return again


def _spread(count: int, most: int) -> Labels:
    """Return at most `most` of `count` rows, evenly spread."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, most).astype(np.int64)
