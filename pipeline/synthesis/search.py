"""The bounded search for guidance: a few settings, compared with validation rows, not by looks.

Successive halving (Jamieson and Talwalkar 2016): all candidates draw a quarter of the images, the
better half goes on to a half of them, the better half of those to all. Every candidate starts from
the same noise and labels, so that their differences tell more than their values.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.diffusion.checkpoints import Generator
from pipeline.diffusion.guidance import Guidance, GuideName
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.folders import write_bytes
from pipeline.metrics.kernel import ClassKernel
from pipeline.synthesis.measures import Embed, Features, Labels, Measures, draw_samples
from pipeline.tracking.tracker import Tracker

NO_GUIDANCE = Guidance()
WEIGHTS = (1.5, 2.0, 3.0)
# Noise over signal. Above it the class is not seen yet and guidance costs variety, below it nothing
# is left to decide; Kynkaanniemi et al. 2024 found intervals of about this place and width.
INTERVAL = (0.3, 3.0)
USUAL_WEIGHT = 1.5  # where there is nothing to choose by
_ROUNDS = (4, 2, 1)  # of how many images one is drawn, round by round
_LOST_ERRORS = 2.0  # coverage this many standard errors below the best is lost
_EXPECTED_COVERAGE = 0.9  # of a perfect generator
_MOST_NEIGHBOURS = 5  # Naeem et al. 2020, section 4


@dataclass(frozen=True)
class Tried:
    """A setting that was tried, as plain data.

    Attributes:
        guidance: in words.
        weight: w; 1 is no guidance.
        low: guidance acts above this sigma,
        high: and up to this one; None is no end.
        guide: what is compared with.
        evaluations: network evaluations an image, those of the guide counted.
        images: samples that it drew.
        kernel_distance: of these to the validation rows, class by class; low is good.
        coverage: share of validation rows that a sample of their class comes near to; high is good.
            It grows with `images`: compare within a round.
        copy_share: share of samples that are copies of training rows; for information.
        round: the last that it took part in, counted from 1.
        chosen: is it the one?
    """

    guidance: str
    weight: float
    low: float
    high: float | None
    guide: GuideName
    evaluations: int
    images: int
    kernel_distance: float
    coverage: float
    copy_share: float
    round: int
    chosen: bool


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        guidance: the choice.
        rows: all that was tried, in order; empty where nothing was.
        neighbours: k of the coverage in the last round; None where nothing was tried.
        reason: why this one, in words.
    """

    guidance: Guidance
    rows: tuple[Tried, ...]
    neighbours: int | None
    reason: str


def search_guidance(
    generator: Generator,
    training: Samples,
    validation: Samples,
    embed: Embed,
    base: SamplerSettings,
    images: int,
    seed: int,
    device: torch.device,
    tracker: Tracker,
) -> SearchResult:
    """Choose how to guide a generator, by validation rows.

    The rule, in each round and for the choice:

    1. A candidate whose coverage falls short of the best one's by more than twice the standard
       error of that difference, over validation rows, has lost variety: it is out, or, in a round,
       ranks behind all that have not.
    2. Of the others, the least kernel distance leads.
    3. For the choice, all whose kernel distance exceeds the least by at most the standard error of
       that difference are equals (Breiman et al. 1984, section 3.4.3). Of equals the one with the
       fewest network evaluations is taken, then the one with the least weight.

    No guidance takes part in every round, to be compared with. Classifier-free guidance is tried
    where the null class was trained, autoguidance where the generator has a weaker network. With
    nothing to compare by (no class with two validation rows) or nothing to try it is 1.5, or 1
    without a trained null class, and the reason says so.

    Args:
        generator: on `device`.
        training: rows that it was trained on.
        validation: real rows to choose by.
        embed: (N, H, W, C) uint8 -> (N, D) features.
        base: the sampler; its guidance is replaced.
        images: samples of each setting in the last round.
        seed: root seed.
        device: where the generator is.
        tracker: told of progress and of the choice.
    """
    tried = candidates(generator.spec.null_class_trained, generator.weaker is not None)
    if len(tried) == 1:
        reason = "the null class was not trained and there is no weaker network: nothing to try"
        return _tell(SearchResult(NO_GUIDANCE, (), None, reason), tracker)
    found = None
    if len(validation):
        found = _Search(generator, training, validation, embed, base, images, seed, device, tracker)
    if found is None or not found.sizes:
        usual = Guidance(USUAL_WEIGHT) if generator.spec.null_class_trained else NO_GUIDANCE
        reason = (
            f"the usual one: no class has two of the {len(validation)} validation images and two "
            "samples, so there is nothing to choose by"
        )
        return _tell(SearchResult(usual, (), None, reason), tracker)
    return _tell(found.run(tried), tracker)


def candidates(null_class: bool, weaker: bool) -> list[Guidance]:
    """Return what is tried, no guidance first: at most ten settings.

    Autoguidance at all levels alone: unlike classifier-free guidance it costs no variety at high
    noise (Karras et al. 2024, section 5).
    """
    low, high = INTERVAL
    found = [NO_GUIDANCE]
    if null_class:
        found += [Guidance(weight, low, high) for weight in WEIGHTS]
        found += [Guidance(weight) for weight in WEIGHTS]
    if weaker:
        found += [Guidance(weight, guide="weaker") for weight in WEIGHTS]
    return found


def pick_neighbours(real: int, fake: int) -> int:
    """Return k of the coverage, 1 to 5.

    The least with which fresh draws of the same distribution cover 0.9 of the real rows, so that
    there is room to be better and to be worse: their coverage is about 1 - (n / (n + m))**k for n
    real and m fake rows (Naeem et al. 2020, lemma 2).
    """
    k = math.ceil(math.log(1 - _EXPECTED_COVERAGE) / math.log(real / (real + fake)))
    return min(max(k, 1), _MOST_NEIGHBOURS)


def write_search(path: Path, result: SearchResult) -> None:
    """Write the table as CSV."""
    buffer = io.StringIO()
    names = list(Tried.__dataclass_fields__)
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in result.rows:
        cells = {
            key: f"{value:.6g}" if isinstance(value, float) else value
            for key, value in asdict(row).items()
        }
        writer.writerow({**cells, "chosen": int(row.chosen)})
    write_bytes(path, buffer.getvalue().encode())


@dataclass(frozen=True)
class _Score:
    """How a candidate did in a round, or in its last one."""

    guidance: Guidance
    order: int
    evaluations: int
    images: int
    kernel: ClassKernel
    covered: Features
    copy_share: float
    round: int

    @property
    def coverage(self) -> float:
        return float(np.nanmean(self.covered))


class _Search:
    """Draws and measures candidates."""

    def __init__(
        self,
        generator: Generator,
        training: Samples,
        validation: Samples,
        embed: Embed,
        base: SamplerSettings,
        images: int,
        seed: int,
        device: torch.device,
        tracker: Tracker,
    ) -> None:
        self._generator, self._base, self._device = generator, base, device
        self._seed, self._tracker, self._real = seed, tracker, len(validation)
        self._measures = Measures(training, validation, embed)
        self._labels = self._measures.labels(images, seed, "search")
        # The quarter of few images may hold no class twice.
        self.sizes = [
            images // part
            for part in _ROUNDS
            if images // part and self._measures.comparable(self._labels[: images // part])
        ]
        self._drawn: dict[Guidance, Images] = {}
        self._done = self._total = 0

    def run(self, tried: Sequence[Guidance]) -> SearchResult:
        """Halve the candidates round by round, and choose."""
        counts = [len(tried)]
        for _ in self.sizes[1:]:
            counts.append(max(2, math.ceil(counts[-1] / 2)))
        steps = np.diff([0, *self.sizes])
        self._total = int(np.dot(counts, steps))
        left = list(tried)
        scores: dict[Guidance, _Score] = {}
        for number, size in enumerate(self.sizes):
            for guidance in left:
                order = tried.index(guidance)
                scores[guidance] = self._score(guidance, order, size, number + 1)
            if number + 1 < len(self.sizes):
                guided = _ranked([scores[g] for g in left if g != NO_GUIDANCE])
                left = [NO_GUIDANCE, *(s.guidance for s in guided[: counts[number + 1] - 1])]
        last = [scores[guidance] for guidance in left]
        chosen = _choose(last)
        return SearchResult(
            chosen.guidance,
            tuple(_row(scores[guidance], chosen) for guidance in tried),
            pick_neighbours(self._real, self.sizes[-1]),
            self._reason(chosen, scores[NO_GUIDANCE]),
        )

    def _score(self, guidance: Guidance, order: int, size: int, number: int) -> _Score:
        settings = replace(self._base, guidance=guidance)
        images = self._draw(guidance, settings, size)
        labels: Labels = self._labels[:size]
        features = self._measures.features(images)
        return _Score(
            guidance,
            order,
            settings.evaluations(self._generator.spec.process),
            size,
            self._measures.kernel(features, labels),
            self._measures.covered(features, labels, pick_neighbours(self._real, size)),
            self._measures.copy_share(images, labels),
            number,
        )

    def _draw(self, guidance: Guidance, settings: SamplerSettings, size: int) -> Images:
        """Return `size` samples; those of the rounds before are taken again."""
        before = self._drawn.get(guidance)
        first = 0 if before is None else len(before)
        more = draw_samples(
            self._generator.model,
            self._generator.weaker,
            self._generator.spec,
            self._labels[first:size],
            settings,
            self._seed,
            "search",
            self._device,
            first,
        )
        images = more if before is None else np.concatenate([before, more])
        self._drawn[guidance] = images
        self._done += size - first
        self._tracker.progress("guidance", self._done, self._total, "images")
        return images

    def _reason(self, chosen: _Score, without: _Score) -> str:
        text = (
            f"kernel distance {chosen.kernel.value:.3f}, coverage {chosen.coverage:.2f} on "
            f"{self._real:,} validation images"
        )
        if chosen is without:
            return f"{text}; no setting that was tried is clearly better"
        return f"{text}; without guidance {without.kernel.value:.3f} and {without.coverage:.2f}"


def _varied(scores: Sequence[_Score]) -> list[_Score]:
    """Return those whose coverage is not clearly below the best one's."""
    best = max(scores, key=lambda score: (score.coverage, -score.order))

    def lost(score: _Score) -> bool:
        gaps = best.covered - score.covered  # row by row: what both miss drops out
        gaps = gaps[~np.isnan(gaps)]
        return bool(gaps.mean() > _LOST_ERRORS * gaps.std(ddof=1) / math.sqrt(len(gaps)))

    return [score for score in scores if not lost(score)]


def _ranked(scores: Sequence[_Score]) -> list[_Score]:
    varied = {score.order for score in _varied(scores)}
    return sorted(scores, key=lambda s: (s.order not in varied, s.kernel.value, s.order))


def _choose(scores: Sequence[_Score]) -> _Score:
    varied = _varied(scores)
    best = min(varied, key=lambda score: (score.kernel.value, score.order))
    equals = [
        score
        for score in varied
        if score.kernel.value - best.kernel.value <= score.kernel.gap_error(best.kernel)
    ]
    return min(equals, key=lambda score: (score.evaluations, score.guidance.weight, score.order))


def _row(score: _Score, chosen: _Score) -> Tried:
    guidance = score.guidance
    return Tried(
        guidance=guidance.describe(),
        weight=guidance.weight,
        low=guidance.low,
        high=guidance.high if math.isfinite(guidance.high) else None,
        guide=guidance.guide,
        evaluations=score.evaluations,
        images=score.images,
        kernel_distance=score.kernel.value,
        coverage=score.coverage,
        copy_share=score.copy_share,
        round=score.round,
        chosen=score is chosen,
    )


def _tell(result: SearchResult, tracker: Tracker) -> SearchResult:
    tracker.note(f"synthesize: {result.guidance.describe()}: {result.reason}")
    return result
