"""What the finished stages found, read back from their folders and checked.

The report stands below the stages, so it reads their JSON files rather than import their code: an
edit of the training loop does not make a page stale.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from pipeline.data.images import ImageMode
from pipeline.data.limits import most_beside
from pipeline.errors import StageError
from pipeline.folders import Manifest, made_from, read_manifest
from pipeline.report.record import Record
from pipeline.report.synthesis import Synthesis
from pipeline.report.verdict import OF_BASE, Control, Controls
from pipeline.report.verdict import Verdict as Verdict  # stages look for it here


class Preparation(Record):
    """prepare/summary.json."""

    classes: list[str]
    image_size_px: int
    image_mode: Literal["L", "RGB"]
    counts: dict[str, dict[str, int]]
    quarantined: int
    quarantine_reasons: dict[str, int]
    conversions: dict[str, int]
    dataset_digest: str


class Pretraining(Record):
    """pretrain/summary.json: the base that the generator started from, if any."""

    base: Literal["none", "pool", "folder", "hub", "run"]
    source: str | None
    base_digest: str | None
    images: int
    steps: int
    parameters: int
    heldout_loss: float | None


class StudentAccount(Record):
    """What train/summary.json says of a distilled network.

    Attributes:
        steps: network evaluations an image.
        digest: of its folder.
        accepted: may it stand in for its teacher?
        reason: why, in words.
    """

    steps: int
    digest: str
    accepted: bool
    reason: str

    def sentence(self, generator_digest: str) -> str:
        """Return what became of it, given the digest of what drew the images."""
        subject = f"A student that samples in {self.steps} step{'' if self.steps == 1 else 's'}"
        used = self.digest == generator_digest
        if self.accepted:
            fate = (
                "was accepted and drew the images"
                if used
                else ("was accepted, but the network that it was distilled from drew the images")
            )
        else:
            fate = (
                "was refused and drew the images all the same, as synthesize.generator asked"
                if used
                else "was refused, so the network that it was distilled from drew the images"
            )
        return f"{subject} {fate}: {self.reason}."


class Training(Record):
    """train/summary.json."""

    steps: int
    most_steps: int
    kept_step: int
    ema_length: float
    parameters: int
    trained_parameters: int
    network: str
    dropout: float
    precision: str
    base_digest: str | None
    reinitialised: list[str]
    generator_digest: str
    training_images: int
    final_loss: float
    validation_loss: float | None
    loss_gap: float | None
    copy_share: float | None
    kernel_distance: float | None
    copies_from_step: int | None
    endurance: str
    guide: str | None = None
    student: StudentAccount | None = None


class Assembly(Record):
    """assemble/summary.json."""

    decision: str
    share: float | None
    real_rows: int
    synthetic_rows: int
    dataset_digest: str


@dataclass(frozen=True)
class Check:
    """One row of train/checks.csv; NaN where something was not measured.

    Attributes:
        step: optimiser steps so far.
        training_loss: denoising loss of training rows.
        heldout_loss: the same of validation rows.
        copy_share: share of samples that are copies, in [0, 1].
        quality: kernel distance of samples to validation rows, low is good.
    """

    step: int
    training_loss: float
    heldout_loss: float
    copy_share: float
    quality: float


@dataclass(frozen=True)
class BaseImages:
    """How many images the base learned from.

    Attributes:
        seen: all of them.
        beyond: those that are no training rows here; `base_caution` says who else saw them.
    """

    seen: int
    beyond: int


@dataclass(frozen=True)
class Findings:
    """All that the page tells of, images excepted.

    Attributes:
        base_images: None without a base, and where it is not known what the base has seen.
        copy_limit: largest share of copies in a network that is kept, in [0, 1].
        manifests: stage name -> manifest, in pipeline order.
        controls: comparisons whose answer is known; empty where they were not run.
    """

    preparation: Preparation
    pretraining: Pretraining
    base_images: BaseImages | None
    training: Training
    copy_limit: float
    synthesis: Synthesis
    verdict: Verdict
    assembly: Assembly
    manifests: dict[str, Manifest]
    controls: Sequence[Control] = ()


_R = TypeVar("_R", bound=Record)


def read_findings(folders: dict[str, Path], controls: Path | None = None) -> Findings:
    """Read what the stages prepare to assemble left.

    Args:
        folders: stage name -> folder.
        controls: controls.json, which need not be there.

    Raises:
        StageError: a file is missing or damaged.
    """
    manifests = {name: need_manifest(folder) for name, folder in folders.items()}
    return Findings(
        preparation=read_record(folders["prepare"] / "summary.json", Preparation),
        pretraining=read_record(folders["pretrain"] / "summary.json", Pretraining),
        base_images=read_base_images(folders["pretrain"], folders["train"]),
        training=read_record(folders["train"] / "summary.json", Training),
        copy_limit=copy_limit(manifests["train"]),
        synthesis=read_record(folders["synthesize"] / "summary.json", Synthesis),
        verdict=read_record(folders["evaluate"] / "verdict.json", Verdict),
        assembly=read_record(folders["assemble"] / "summary.json", Assembly),
        manifests=manifests,
        controls=read_controls(controls) if controls else [],
    )


def read_controls(path: Path) -> list[Control]:
    """Return the controls, or none where there is no such file.

    Raises:
        StageError: the file is damaged.
    """
    return read_record(path, Controls).rows if path.is_file() else []


def read_base_images(pretrain: Path, train: Path) -> BaseImages | None:
    """Return how many images the base has seen; None where there is no base, or no list of them.

    Raises:
        StageError: the list of training rows is missing.
    """
    seen = _read_lines(pretrain / "base" / "training_ids.txt")
    if seen is None:
        return None
    path = train / "training_ids.txt"
    training = _read_lines(path)
    if training is None:
        raise StageError(f"{path}: missing; run the stage `{train.name}` again")
    return BaseImages(len(seen), len(seen - training))


def base_caution(
    pretraining: Pretraining,
    base_images: BaseImages | None,
    verdict: Verdict,
    image_size_px: int,
    image_mode: ImageMode,
) -> str:
    """Return what the base means for the gain, in sentences; empty where it means nothing.

    Card and page both show it. Nothing in it was written by a user.

    Args:
        pretraining: what the generator started from.
        base_images: how many images the base has seen; None where that is not known.
        verdict: of the comparison, whose arms count.
        image_size_px: side of the images: their bytes limit what the pool's arms look at.
        image_mode: of the images.
    """
    if pretraining.base == "none" or (base_images is not None and not base_images.beyond):
        return ""
    of_pool = ", ".join(verdict.pool_arms())
    held_out = "By their pixels none of them is a test or validation image."
    if base_images is None:
        seen = "Which images the base has seen is not known."
        held_out = "Test images may be among them; if they are, the gain says nothing."
    else:
        seen = f"The base learned from {base_images.beyond:,} images beyond the training images."
    if base_images is None or not pretraining.images:  # it was trained elsewhere
        what = "images are" if pretraining.base == "pool" else "images and labels are"
        # The ids of the pool are not at hand: some of them may be the base's too.
        but = " (but for images that stand in the pool too)" if of_pool else ""
        if verdict.n.base_images:
            of_base = (
                f"{seen} {held_out} The baseline {OF_BASE} saw {verdict.n.base_images:,} of them, "
                "with their labels: the gain is what the generator brings beyond these."
            )
            whole = base_images is not None and base_images.beyond <= verdict.n.base_images
            others = f" The others are knowledge that no baseline had{but}."
            return of_base if whole else of_base + others
        return (
            f"{seen} {held_out} Its {what} knowledge that no baseline had{but}: the gain is what "
            "that knowledge brings through the generator, not what generating brings by itself."
        )
    most = most_beside(image_size_px, image_mode)
    seen = f"The base learned from {base_images.beyond:,} unlabelled images"
    if not of_pool:
        seen += " that no baseline saw, so part of any gain"
    elif base_images.beyond <= most:
        seen += f" that only the arms of the pool saw too ({of_pool}), so part of any gain "
        seen += "over the others"
    else:
        seen += f". The baselines of the pool ({of_pool}) looked at no more than {most:,} of them, "
        seen += "the others at none, so part of any gain"
    return f"{seen} may come from the pool rather than from synthesis. {held_out}"


def _read_lines(path: Path) -> set[str] | None:
    try:
        return set(path.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: not readable ({error!r}); run its stage again") from None


def copy_limit(manifest: Manifest) -> float:
    """Return the `copy_limit` that the stage train had, in [0, 1].

    Raises:
        StageError: the manifest does not say.
    """
    value = manifest.params.get("copy_limit")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise StageError("train: its manifest has no copy_limit; run the stage `train` again")
    return float(value)


def read_table(
    path: Path, columns: tuple[str, ...], keep_gaps: bool = False
) -> list[tuple[float, ...]]:
    """Return the named columns of a CSV of numbers, row by row.

    Args:
        path: the file.
        columns: names of the columns.
        keep_gaps: give an empty field as NaN, rather than leave its row out?

    Raises:
        StageError: the file or a column is missing, or a value is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[row[name] for name in columns] for row in csv.DictReader(file)]
        return [
            tuple(math.nan if value == "" else float(value) for value in row)
            for row in rows
            if keep_gaps or all(row)
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from None


def read_checks(path: Path) -> list[Check]:
    """Return the rows of checks.csv, in order; what was not measured is NaN.

    Raises:
        StageError: the file or a column is missing, or a value is no number.
    """
    columns = ("step", "training_loss", "heldout_loss", "copy_share", "quality")
    rows = read_table(path, columns, keep_gaps=True)
    try:
        return [Check(int(row[0]), *row[1:]) for row in rows]
    except (ValueError, OverflowError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> StageError:
    return StageError(f"{path}: not readable ({error!r}); run the stage `{path.parent.name}` again")


def read_record(path: Path, kind: type[_R]) -> _R:
    """Return the JSON file as a `kind`; keys that it does not know are left out.

    Raises:
        StageError: the file is missing, no JSON, or lacks a key.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: missing; run the stage `{path.parent.name}` again") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        raise StageError(
            f"{path}: damaged ({key}: {first['msg']}); run the stage `{path.parent.name}` again"
        ) from None


def need_manifest(folder: Path) -> Manifest:
    """Return the manifest of a finished stage folder.

    Raises:
        StageError: there is none, or it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder}: unfinished; run the stage `{folder.name}` again")
    return manifest


def check_lineage(manifests: dict[str, Manifest]) -> None:
    """Refuse folders that were not made from each other.

    Args:
        manifests: stage name -> manifest; inputs that are not among them are not looked at.

    Raises:
        StageError: a stage was made from another version of a folder than the one at hand.
    """
    for name, manifest in manifests.items():
        for needed, (digest, here) in made_from(manifest, manifests).items():
            raise StageError(
                f"`{name}` was made from another `{needed}` folder than the one at hand "
                f"({digest[:12]}, not {here[:12]}); "
                "run `replenish run` to bring all stages up to date"
            )


def plain_params(manifest: Manifest) -> list[tuple[str, Any]]:
    """Return the stage's settings as (name, value), nested ones as `outer.inner`."""
    rows: list[tuple[str, Any]] = []
    for key, value in sorted(manifest.params.items()):
        if isinstance(value, dict):
            rows += [(f"{key}.{inner}", found) for inner, found in sorted(value.items())]
        else:
            rows.append((key, value))
    return rows
