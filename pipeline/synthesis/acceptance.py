"""Is a distilled student as good as its teacher? Asked of classifiers, on validation rows alone.

Both draw the same number of images a class from the same noise, the teacher as the stage
synthesize would have it do by its defaults: those are the images that the student's stand in for.
For each seed two classifiers are trained, alike but for whose images they see, on real and
synthetic images half and half.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import BaseModel, ConfigDict

from pipeline.data.images import Images
from pipeline.data.store import Samples, without_held_out_repeats
from pipeline.device import Precision, torch_threads
from pipeline.diffusion.checkpoints import DistillMethod, GeneratorSpec, StudentSpec
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.downstream.arms import Arm, make_pools
from pipeline.downstream.bench import Bench
from pipeline.downstream.fitting import train_pair
from pipeline.downstream.scores import score
from pipeline.features.classifier import embed
from pipeline.features.judge import fit_judge
from pipeline.params import EvaluateParams, SynthesizeParams, TrainParams
from pipeline.synthesis.measures import Measures, draw_samples
from pipeline.synthesis.settings import settings_of, student_settings
from pipeline.tracking.tracker import Tracker

_MOST_IMAGES = 100  # a class
_ENCODER_STEPS = 150  # of the classifier whose features the kernel distance is taken in
# As the mixed arms of evaluate are by default.
_ARM = Arm("mixed", "synthetic", 0.5, "light", True, "synthetic")
_MOST_DISTANCE = 2.0  # a student's kernel distance, in its teacher's
_LEAST_DISTANCE = 0.05  # teachers below it are counted as this: near nought a ratio says nothing
_POINTS = 100.0  # percentage points a unit


class StudentAccount(BaseModel):
    """What came of the distillation, and whether the student stands in for its teacher.

    Attributes:
        method: of distillation.
        steps: network evaluations an image of the student.
        guidance: weight of the guidance that it has within; the teacher's images have their own.
        digest: of the student's folder.
        accepted: does it stand in for its teacher?
        reason: why, in words.
        difference_points: mean over seeds of its classifiers' balanced accuracy on validation rows
            less that of its teacher's, in percentage points; None where it could not be measured.
        standard_error_points: of that mean, over seeds.
        margin_points: how far below nought it may be.
        student_accuracy: balanced accuracy by seed with the student's images, in [0, 1].
        teacher_accuracy: the same with the teacher's.
        validation_images: distinct validation rows.
        images_per_class: synthetic images that each drew.
        student_copy_share: share of them that are copies, mean over classes.
        teacher_copy_share: the same of the teacher's.
        student_kernel_distance: of them to the validation rows, class by class; None: unknown.
        teacher_kernel_distance: the same of the teacher's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: DistillMethod
    steps: int
    guidance: float
    digest: str
    accepted: bool
    reason: str
    difference_points: float | None
    standard_error_points: float | None
    margin_points: float
    student_accuracy: list[float]
    teacher_accuracy: list[float]
    validation_images: int
    images_per_class: int
    student_copy_share: float
    teacher_copy_share: float
    student_kernel_distance: float | None
    teacher_kernel_distance: float | None


@dataclass(frozen=True)
class _Drawn:
    """The images of one of the two, and what was measured of them."""

    images: Images
    copy_share: float
    kernel_distance: float | None


def examine_student(
    teacher: UNet2DModel,
    student: UNet2DModel,
    spec: GeneratorSpec,
    taught: StudentSpec,
    digest: str,
    training: Samples,
    validation: Samples,
    params: TrainParams,
    precision: Precision,
    device: torch.device,
    tracker: Tracker,
    beat: Callable[[], None],
) -> StudentAccount:
    """Compare a student with its teacher, and decide.

    Args:
        teacher: the generator's network, on `device`.
        student: what was distilled from it, likewise.
        spec: of both.
        taught: how the student is sampled.
        digest: of the student's folder.
        training: real training rows.
        validation: real rows to judge by; no test row is among them.
        params: margin, seeds, limit of copies.
        precision: of the networks' arithmetic.
        device: where the networks are.
        tracker: told of progress.
        beat: called after each classifier.
    """
    validation = without_held_out_repeats(validation)
    classes = len(spec.classes)
    each = min(int(np.bincount(training.labels).max()), _MOST_IMAGES)
    labels = np.repeat(np.arange(classes, dtype=np.int64), each)
    of_student, of_teacher = _draw_both(
        (
            (student, student_settings(taught, precision)),
            (teacher, settings_of(SynthesizeParams(), precision)),
        ),
        spec,
        labels,
        training,
        validation,
        params.seed,
        device,
        tracker,
    )
    beat()
    accuracies: list[list[float]] = [[], []]
    if len(validation):
        benches = [
            _bench(training, one.images, labels, validation, classes)
            for one in (of_student, of_teacher)
        ]
        evaluation = EvaluateParams(seed=params.seed, execution=params.execution)
        total = 2 * params.distill_seeds
        tracker.progress("compare", 0, total, "classifiers")
        for seed in range(params.distill_seeds):
            for which, bench in enumerate(benches):
                with torch_threads(1):  # as evaluate trains them
                    found = train_pair(bench, evaluation, (_ARM, seed), device)
                scores = score(validation.labels, found.validation, classes)
                accuracies[which].append(scores.balanced_accuracy)
                tracker.progress("compare", 2 * seed + which + 1, total, "classifiers")
                beat()
    mean, error = paired_difference(*accuracies)
    accepted, reason = decide(
        mean,
        error,
        of_student.copy_share,
        of_teacher.copy_share,
        (of_student.kernel_distance, of_teacher.kernel_distance),
        params,
    )
    return StudentAccount(
        method=taught.method,
        steps=len(taught.times),
        guidance=taught.guidance,
        digest=digest,
        accepted=accepted,
        reason=reason,
        difference_points=mean,
        standard_error_points=error,
        margin_points=params.distill_margin_points,
        student_accuracy=accuracies[0],
        teacher_accuracy=accuracies[1],
        validation_images=len(validation),
        images_per_class=each,
        student_copy_share=of_student.copy_share,
        teacher_copy_share=of_teacher.copy_share,
        student_kernel_distance=of_student.kernel_distance,
        teacher_kernel_distance=of_teacher.kernel_distance,
    )


def paired_difference(
    student: Sequence[float], teacher: Sequence[float]
) -> tuple[float | None, float | None]:
    """Return the mean over seeds of student less teacher and its standard error, in points.

    None where there are no seeds; both lists are in seed order.
    """
    if not student:
        return None, None
    gaps = _POINTS * (np.asarray(student) - np.asarray(teacher))
    return float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(len(gaps))


def decide(
    mean: float | None,
    error: float | None,
    student_copies: float,
    teacher_copies: float,
    distances: tuple[float | None, float | None],
    params: TrainParams,
) -> tuple[bool, str]:
    """Return whether the student is accepted, and why, in words.

    Easy classes forgive poor images: a student that had hardly been taught lost the classifiers 0.4
    points on digits (docs/log.md). Hence the limit on the kernel distance beside the margin.

    Args:
        mean: of `paired_difference`; None: not measured.
        error: its standard error.
        student_copies: share of the student's images that are copies.
        teacher_copies: the same of its teacher's.
        distances: kernel distances of the student's and its teacher's images; None: not known.
        params: `distill_margin_points`, `copy_limit` and the seeds.
    """
    margin, limit = params.distill_margin_points, params.copy_limit
    if mean is None or error is None:
        return False, "there are no validation images to compare it with its teacher by"
    measured = (
        f"with its images classifiers have {mean:+z.2f} points of balanced accuracy on validation "
        f"against its teacher's (standard error {error:.2f}, {params.distill_seeds} seeds; "
        f"a loss of {margin:g} is allowed)"
    )
    if student_copies > limit >= teacher_copies:
        return False, (
            f"{student_copies:.1%} of its images are copies and {teacher_copies:.1%} of its "
            f"teacher's, and train.copy_limit is {limit:g}; {measured}"
        )
    student, teacher = distances
    if student is not None and teacher is not None:
        most = _MOST_DISTANCE * max(teacher, _LEAST_DISTANCE)
        if student > most:
            return False, (
                f"the kernel distance of its images to validation images is {student:.3f}, more "
                f"than {_MOST_DISTANCE:g} times its teacher's {teacher:.3f}; {measured}"
            )
    # Rounded: a mean of many terms may miss the margin by the last bit.
    return round(mean + margin, 9) >= 0, measured


def _draw_both(
    pairs: tuple[tuple[UNet2DModel, SamplerSettings], tuple[UNet2DModel, SamplerSettings]],
    spec: GeneratorSpec,
    labels: npt.NDArray[np.int64],
    training: Samples,
    validation: Samples,
    seed: int,
    device: torch.device,
    tracker: Tracker,
) -> tuple[_Drawn, _Drawn]:
    """Draw the same labels from the same noise with both networks, and measure the images."""
    encoder = fit_judge(
        training,
        len(spec.classes),
        _ENCODER_STEPS,
        seed,
        device,
        lambda step: tracker.progress("encoder", step, _ENCODER_STEPS, "steps"),
    )
    # Copies are looked for without validation rows too; the distance is not taken then.
    measures = Measures(
        training, validation if len(validation) else training, lambda rows: embed(encoder, rows)
    )

    def drawn(model: UNet2DModel, settings: SamplerSettings) -> _Drawn:
        images = draw_samples(model, None, spec, labels, settings, seed, "acceptance", device)
        distance = None
        if len(validation) and measures.comparable(labels):
            distance = measures.kernel(measures.features(images), labels).value
        return _Drawn(images, measures.copy_share(images, labels), distance)

    return drawn(*pairs[0]), drawn(*pairs[1])


def _bench(
    training: Samples,
    synthetic: Images,
    labels: npt.NDArray[np.int64],
    validation: Samples,
    classes: int,
) -> Bench:
    """Return what the classifiers work on: no test row is among it."""
    every = np.concatenate([training.labels, labels])
    made = np.arange(len(every)) >= len(training)
    return Bench(
        images=np.concatenate([training.images, synthetic]),
        labels=every,
        pools=make_pools(every, made, classes),
        validation=validation.images,
        test=validation.images[:0],
        classes=classes,
        real_images=len(training),
    )
