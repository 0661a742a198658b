"""The rows of the baselines that add some, made once before the comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax

from pipeline.data.images import Images
from pipeline.data.limits import most_beside
from pipeline.data.store import Samples, read_info, read_samples, without_held_out_repeats
from pipeline.device import pick_device, torch_threads
from pipeline.downstream.arms import OF_BASE, OF_POOL, Added, Arm
from pipeline.downstream.bench import (
    Bench,
    Probabilities,
    Rivals,
    join_rivals,
    read_bench,
    write_rivals,
)
from pipeline.downstream.fitting import fit_pair
from pipeline.downstream.rivals import (
    Floats,
    Labels,
    most_rows,
    pseudo_labelled,
    retrieved,
    smote_rows,
)
from pipeline.downstream.scores import score
from pipeline.features.classifier import Classifier, embed, predict
from pipeline.params import EvaluateParams
from pipeline.seeds import derive_seed, numpy_generator
from pipeline.tracking.tracker import Tracker

_TEACHERS = 3  # classifiers whose mean probability is a pseudo-label's
_TEACHER_SEED = 2_000_000  # their repetitions: none of them is scored
# Validation rows choose who teaches, since the best kind differs by the set.
_TEACHER_KINDS = (
    Arm("real_augmented", "baseline", None, "light"),
    Arm("real_augmented_strong", "baseline", None, "strong"),
    Arm("cutmix", "baseline", None, "light", mix="cutmix", strength=0.5),
)


def make_rivals(
    params: EvaluateParams,
    dataset: Path,
    accepted: Path,
    wanted: Sequence[Added],
    path: Path,
    tracker: Tracker,
    of_base: Samples | None = None,
) -> Path | None:
    """Make the rows that baselines add; return the file, or None where no arm wants any.

    A file that is there was made by an interrupted run of the same work.

    Args:
        params: the stage's section.
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows.
        wanted: kinds that arms add.
        path: file to write.
        tracker: told how far the teachers are.
        of_base: labelled rows that the base was trained on, if they are at hand.
    """
    kinds = [kind for kind in dict.fromkeys(wanted) if kind != "synthetic"]
    if not kinds:
        return None
    if not path.is_file():
        bench = read_bench(dataset, accepted)
        write_rivals(path, _make(params, bench, dataset, kinds, tracker, of_base))
    return path


def _make(
    params: EvaluateParams,
    bench: Bench,
    dataset: Path,
    kinds: Sequence[Added],
    tracker: Tracker,
    of_base: Samples | None,
) -> Rivals:
    images, labels = bench.images[: bench.real_images], bench.labels[: bench.real_images]
    most = most_rows(labels)
    parts: dict[Added, tuple[Images, Labels]] = {}
    if "smote" in kinds:
        seed = derive_seed(params.seed, "evaluate", "smote") % 2**31
        parts["smote"] = smote_rows(images, labels, seed)
    if of_base is not None and OF_BASE in kinds:
        parts[OF_BASE] = of_base.images, of_base.labels
    soft: Probabilities | None = None
    if any(kind in OF_POOL for kind in kinds):
        pool = read_samples(dataset, ("pool",)).images
        info = read_info(dataset)
        limit = most_beside(info.image_size_px, info.image_mode)
        if len(pool) > limit:
            random = numpy_generator(params.seed, "evaluate", "pool")
            pool = pool[np.sort(random.choice(len(pool), limit, replace=False))]
        validation = without_held_out_repeats(read_samples(dataset, ("validation",)))
        chance, of_pool, of_real = _taught(params, bench, images, validation, pool, tracker)
        if "pseudo_labels" in kinds:
            found = pseudo_labelled(pool, [chance], params.pseudo_confidence, most)
            parts["pseudo_labels"] = found
        if "pseudo_labels_soft" in kinds:
            parts["pseudo_labels_soft"] = pool, chance.argmax(axis=1).astype(np.int64)
            soft = chance.astype(np.float16)
        if "retrieval" in kinds:
            parts["retrieval"] = retrieved(pool, of_pool, of_real, labels, most)
    return join_rivals(parts, soft)


def _taught(
    params: EvaluateParams,
    bench: Bench,
    images: Images,
    validation: Samples,
    pool: Images,
    tracker: Tracker,
) -> tuple[Floats, Floats, Floats]:
    """Return the teachers' mean probabilities of the pool, and features of pool and real rows.

    One of each kind is trained; the kind with the best validation balanced accuracy teaches.
    The features are the first one's.
    """
    device = pick_device(params.execution.device)
    total = len(_TEACHER_KINDS) + _TEACHERS - 1

    def train(kind: Arm, number: int, done: int) -> Classifier:
        tracker.progress("teachers", done, total, "runs")
        with torch_threads(1):  # as all classifiers are trained
            return fit_pair(bench, params, (kind, _TEACHER_SEED + number), device)

    tried = [train(kind, 0, place) for place, kind in enumerate(_TEACHER_KINDS)]
    with torch_threads(1):
        # Rounded, so that the order of a sum does not break a tie.
        scores = [round(_accuracy(one, validation, bench.classes), 12) for one in tried]
    best = int(np.argmax(scores))
    kind = _TEACHER_KINDS[best]
    tracker.note(f"evaluate: {kind.name} classifiers label the unlabelled images")
    more = [train(kind, number, total - _TEACHERS + number) for number in range(1, _TEACHERS)]
    tracker.progress("teachers", total, total, "runs")
    teachers = [tried[best], *more]
    with torch_threads(1):
        chances = [softmax(predict(model, pool).astype(np.float64), axis=1) for model in teachers]
        of_pool, of_real = (embed(teachers[0], rows).astype(np.float64) for rows in (pool, images))
    return np.asarray(np.mean(chances, axis=0)), of_pool, of_real


def _accuracy(model: Classifier, rows: Samples, classes: int) -> float:
    predicted = predict(model, rows.images).argmax(axis=1)
    return score(rows.labels, predicted, classes).balanced_accuracy
