"""Finished stage folders, written by the contracts of the stages but without their work.

The real images are scikit-learn's digits; other digits, a little noisy, pass for synthetic ones.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from pipeline.data.store import (
    Samples,
    concatenate,
    make_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.folders import read_manifest, write_bytes, write_json, write_manifest
from pipeline.hashing import digest_json
from pipeline.params import Params
from pipeline.recipe.advice import write_recipe
from pipeline.recipe.facts import set_facts
from pipeline.stages import STAGES

DIGITS = tuple(f"digit {k}" for k in range(10))
GENERATOR = digest_json("generator")
BASE = digest_json("base")
_REJECTIONS = ("disagrees", "unsure", "copy_ratio", "copy_distance", "repeat", "surplus")


@dataclass(frozen=True)
class Fake:
    """What the fake stages found.

    Attributes:
        classes: class names, at most 10 unless `training` says otherwise.
        training: real training images of each class.
        accepted: accepted synthetic images of each class.
        rejected: rejected images of each class; None: there is no rejected store.
        decision: of the verdict.
        gain: gain in points, low, high.
        base: where the generator started from, as `pretrain.base`.
        source: of the base, for people.
        base_beyond: images that the base saw beyond the training rows; None: not known.
        copy_shares: of the checks, every 500 steps; None where it was not measured.
        guide: the weaker network, in words.
        searched: was guidance searched for?
        planned: was the number of images planned?
        student: was one distilled, and was it accepted?
        student_draws: did it draw the images?
    """

    classes: Sequence[str] = DIGITS[:3]
    training: Sequence[int] = (6, 4, 2)
    accepted: Sequence[int] = (0, 2, 4)
    rejected: Sequence[int] | None = (0, 2, 3)
    held_out: int = 3
    mode: str = "L"
    repeat_px: int = 1
    decision: str = "use"
    share: float = 0.5
    gain: tuple[float, float, float] = (3.1, 1.2, 5.0)
    base: str = "none"
    source: str = "1,551 unlabelled images"
    base_beyond: int | None = 40
    copy_shares: Sequence[float | None] = (0.0, 0.0, 0.004, 0.021, 0.055)
    guide: str | None = None
    searched: bool = False
    planned: bool = False
    student: bool | None = None
    student_draws: bool = False
    params: Params = field(default_factory=Params)


def write_stages(root: Path, fake: Fake | None = None) -> dict[str, Path]:
    """Write the folders prepare to evaluate; return name -> folder."""
    fake = fake or Fake()
    source = _Digits(fake)
    names = ("prepare", "pretrain", "train", "synthesize", "evaluate")
    folders = {name: root / name for name in names}
    real = concatenate(
        [
            source.rows(fake.training, "train"),
            source.rows([fake.held_out] * len(fake.classes), "validation"),
            source.rows([fake.held_out] * len(fake.classes), "test"),
        ]
    )
    _write_prepare(folders["prepare"], fake, real)
    _write_pretrain(folders["pretrain"], fake, real)
    _write_train(folders["train"], fake, real)
    _write_synthesize(folders["synthesize"], fake, real, source)
    write_evaluate(folders["evaluate"], fake)
    return folders


def finish(folder: Path, params: Params) -> None:
    """Write the manifest of a folder whose inputs lie beside it."""
    inputs: dict[str, str] = {}
    spec = STAGES[folder.name]  # type: ignore[index]
    for needed in spec.inputs:
        manifest = read_manifest(folder.parent / needed)
        if manifest is not None:
            files = spec.only.get(needed)
            if files is None:
                inputs[needed] = manifest.digest
            else:
                inputs |= {f"{needed}/{file}": manifest.files[file] for file in files}
    section = getattr(params, folder.name)
    write_manifest(folder, folder.name, "key", section.identity(), inputs)


class _Digits:
    """Gives digits, no one twice; class k shows digit k modulo 10."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        data = load_digits()
        self._images = (data.images * 15).astype(np.uint8)
        self._rows = [np.flatnonzero(data.target == k) for k in range(10)]
        self._used = [0] * 10
        self._random = np.random.default_rng(0)

    def rows(
        self, counts: Sequence[int], split: str, origin: str = "real", noise: int = 6
    ) -> Samples:
        images, labels = [], []
        for label, count in enumerate(counts):
            for _ in range(count):
                images.append(self._draw(label, noise))
                labels.append(label)
        side = 8 * self._fake.repeat_px
        shape = (len(images), side, side, 1 if self._fake.mode == "L" else 3)
        pixels = np.asarray(images, dtype=np.uint8).reshape(shape)
        return make_samples(pixels, np.asarray(labels, dtype=np.int64), split, origin)

    def _draw(self, label: int, noise: int) -> np.ndarray:
        k = label % 10
        row = self._rows[k][self._used[k] % len(self._rows[k])]
        self._used[k] += 1
        image = self._images[row].astype(int)
        # Noise keeps equal digits apart: no two rows have the same pixels.
        image = (image + self._random.integers(0, noise, image.shape)).clip(0, 255)
        image = image.astype(np.uint8).repeat(self._fake.repeat_px, 0)
        image = image.repeat(self._fake.repeat_px, 1)[:, :, None]
        if self._fake.mode == "RGB":
            image = np.concatenate([image, image // 2, 255 - image], axis=2)
        return image


def _store(folder: Path, fake: Fake, rows: Samples) -> Any:
    side = 8 * fake.repeat_px
    return write_store(folder, rows, fake.classes, side, fake.mode)  # type: ignore[arg-type]


def _write_prepare(folder: Path, fake: Fake, real: Samples) -> None:
    info = _store(folder / "dataset", fake, real)
    line = {"file": "digit 0/broken.png", "reason": "unreadable", "detail": "truncated"}
    write_bytes(folder / "quarantine.jsonl", (json.dumps(line) + "\n").encode())
    write_bytes(folder / "unlabelled_ids.txt", "\n".join(_training_ids(real)).encode())
    write_recipe(folder, "auto", set_facts(info))
    summary = {
        "classes": list(fake.classes),
        "image_size_px": info.image_size_px,
        "image_mode": fake.mode,
        "counts": info.counts,
        "quarantined": 1,
        "quarantine_reasons": {"unreadable": 1},
        "conversions": {"to grey": 2},
        "dataset_digest": info.digest,
    }
    write_json(folder / "summary.json", summary)
    finish(folder, fake.params)


def _training_ids(real: Samples) -> list[str]:
    return sorted(i for i, split in zip(real.ids, real.splits, strict=True) if split == "train")


def _write_pretrain(folder: Path, fake: Fake, real: Samples) -> None:
    none, pool = fake.base == "none", fake.base == "pool"
    seen = 0
    if not none and fake.base_beyond is not None:
        ids = [*_training_ids(real), *(f"{k:064x}" for k in range(fake.base_beyond))]
        write_bytes(folder / "base" / "training_ids.txt", "\n".join(ids).encode())
        seen = len(ids)
    summary = {
        "base": fake.base,
        "source": None if none else fake.source,
        "base_digest": None if none else BASE,
        "images": seen if pool else 0,
        "steps": 2000 if pool else 0,
        "parameters": 0 if none else 1_053_000,
        "labelled_images": 0,
        "heldout_loss": 0.081 if pool else None,
    }
    write_json(folder / "summary.json", summary)
    side = real.images.shape[1]
    write_store(folder / "base_images", real.take([]), (), side, "L" if fake.mode == "L" else "RGB")
    finish(folder, fake.params)


def _write_train(folder: Path, fake: Fake, real: Samples) -> None:
    steps = np.arange(25, 2501, 25)
    random = np.random.default_rng(1)
    loss = 0.9 * np.exp(-steps / 350) + 0.09 + random.normal(0, 0.008, len(steps))
    lines = [f"{s},{v:.6f},0.5,0.001" for s, v in zip(steps, loss, strict=True)]
    write_bytes(
        folder / "curve.csv", "\n".join(["step,loss,gradient_norm,learning_rate", *lines]).encode()
    )
    lines = [
        f"{s},0.1,{0.9 * np.exp(-s / 350) + 0.085:.6f},{0.88 * np.exp(-s / 350) + 0.1:.6f},"
        + ("," if share is None else f"{share:.6g},{0.3 + (s - 1500) ** 2 / 4e6:.6g}")
        for s, share in zip(range(500, 2501, 500), fake.copy_shares, strict=True)
    ]
    head = "step,ema_length,training_loss,heldout_loss,copy_share,quality"
    write_bytes(folder / "checks.csv", "\n".join([head, *lines, ""]).encode())
    write_bytes(folder / "lengths.csv", "\n".join([head, *lines[2:3], ""]).encode())
    trained = _training_ids(real)
    write_bytes(folder / "training_ids.txt", "\n".join(trained).encode())
    write_json(folder / "class_sources.json", {})
    measured = fake.copy_shares[2] is not None
    first = next((k for k, v in enumerate(fake.copy_shares) if v and v > 0.01), None)
    copies_from = None if first is None else 500 * (first + 1)
    none = fake.base == "none"
    summary = {
        "steps": 2500,
        "most_steps": 4000,
        "kept_step": 1500,
        "ema_length": 0.1,
        "parameters": 1_053_377,
        "trained_parameters": 1_053_377,
        "network": "small network (few images)" if none else "the base's network",
        "dropout": 0.125,
        "precision": "float32",
        "base": None if none else f"{fake.base}: {fake.source}",
        "base_digest": None if none else BASE,
        "reinitialised": [] if none else [f"conv_in.{k}" for k in range(6)],
        "generator_digest": GENERATOR,
        "training_images": len(trained),
        "final_loss": 0.0921,
        "validation_loss": 0.1007,
        "loss_gap": 0.0133,
        "copy_share": fake.copy_shares[2],
        "kernel_distance": 0.3 if measured else None,
        "copies_from_step": copies_from,
        "endurance": f"with {len(trained):,} images, best at step 1,500"
        + (f", copies from step {copies_from:,}" if copies_from else ""),
        "guide": fake.guide,
        "student": None
        if fake.student is None
        else {
            "steps": 4,
            "digest": GENERATOR if fake.student_draws else "5" * 64,
            "accepted": fake.student,
            "reason": "its images bring 2.00 points less",
        },
    }
    write_json(folder / "summary.json", summary)
    finish(folder, fake.params)


def _candidates(fake: Fake, source: _Digits, counts: Sequence[int], real: Samples) -> Samples:
    rows = source.rows(counts, "train", "synthetic", noise=40)
    random = np.random.default_rng(2)
    n = len(rows)
    train = [i for i, split in enumerate(real.splits) if split == "train"]
    columns: dict[str, list[Any]] = {
        "generator": [GENERATOR] * n,
        "index": list(range(n)),
        "seed": [0] * n,
        "sampler": ["dpmsolver++"] * n,
        "sampler_steps": [20] * n,
        "guidance": [1.5] * n,
        "round": [1] * n,
        "predicted": [int(label) for label in rows.labels],
        "confidence": random.uniform(0.6, 1.0, n).tolist(),
        "margin": random.uniform(0.2, 0.9, n).tolist(),
        "nearest_id": [],
        "pixel_distance": [],
        "pixel_ratio": [],
        "support_distance": random.uniform(0.5, 1.5, n).tolist(),
        "reason": ["accepted"] * n,
    }
    each = slice(None, None, fake.repeat_px)  # pixels are repeated: one of each is enough
    flat = real.images[train][:, each, each].reshape(len(train), -1) / 255.0
    for image in rows.images[:, each, each]:
        gaps = np.sqrt(((flat - image.reshape(1, -1) / 255.0) ** 2).mean(axis=1))
        first, second = np.argsort(gaps)[:2]
        columns["nearest_id"].append(real.ids[train[first]])
        columns["pixel_distance"].append(float(gaps[first]))
        columns["pixel_ratio"].append(float(gaps[first] / gaps[second]))
    rows.extra.update(columns if n else {})
    return rows


def _write_synthesize(folder: Path, fake: Fake, real: Samples, source: _Digits) -> None:
    accepted = _candidates(fake, source, fake.accepted, real)
    _store(folder / "accepted", fake, accepted)
    account: list[dict[str, int]] = [{"accepted": count} for count in fake.accepted]
    if fake.rejected is not None:
        rejected = _candidates(fake, source, fake.rejected, real)
        for row, label in enumerate(rejected.labels):
            reason = _REJECTIONS[row % len(_REJECTIONS)]
            rejected.extra["reason"][row] = reason
            account[label][reason] = account[label].get(reason, 0) + 1
            if reason == "disagrees":
                rejected.extra["predicted"][row] = (int(label) + 1) % len(fake.classes)
                rejected.extra["confidence"][row] *= 0.2
        _store(folder / "rejected", fake, rejected)
    classes = [
        {
            "name": name,
            "wanted": count + (label == 1),
            "candidates": sum(reasons.values()),
            "accepted": count,
            "shortfall": int(label == 1),
            "reasons": reasons,
        }
        for label, (name, count, reasons) in enumerate(
            zip(fake.classes, fake.accepted, account, strict=True)
        )
    ]
    candidates = sum(sum(reasons.values()) for reasons in account)
    summary = {
        "generator_digest": GENERATOR,
        "generator": "teacher",
        "mode": "generate",
        "sampler": "dpmsolver++",
        "sampler_steps": 20,
        "guidance": "classifier-free guidance 1.5",
        "rounds": 2,
        "candidates": candidates,
        "accepted": sum(fake.accepted),
        "acceptance_rate": sum(fake.accepted) / candidates if candidates else 0.0,
        "judge_validation_accuracy": 0.947,
        "thresholds": {
            "confidence_0": 0.4,
            "confidence_1": 0.188,
            "class_ratio": 1.2,
            "copy_distance": 0.08,
            "copy_ratio": 1 / 3,
        },
        "classes": classes,
        "rules": [
            {"rule": "copies", "rejected": 3, "alone": 4, "validation_share": 0.002},
            {"rule": "labels", "rejected": 7, "alone": 7, "validation_share": None},
        ],
        **_guidance(fake),
        **_plan(fake),
    }
    write_json(folder / "metrics.json", {"accepted": sum(fake.accepted)})
    write_json(folder / "summary.json", summary)
    finish(folder, fake.params)


def _plan(fake: Fake) -> dict[str, Any]:
    if not fake.planned:
        return {}
    classes = [
        {
            "name": name,
            "training_images": 10 + k,
            "images": 20 * k,
            "tried": [
                {"images": 20, "shrunk_points": 1.5 - k, "error_points": 0.7},
                {"images": 40, "shrunk_points": -0.5, "error_points": 0.9},
            ][: 2 - (k == 1)],
            "confirmed_points": None if k == 1 else 1.25,
        }
        for k, name in enumerate(fake.classes)
    ]
    plan = {
        "classes": classes,
        "reason": "each class gets what its <own> curve speaks for",
        "budget_images": 500,
        "margin_points": 2.0,
        "confirmed_points": -0.6,
    }
    return {"plan": plan, "encoder_warning": "the encoder mixes up <a> and b"}


def _guidance(fake: Fake) -> dict[str, Any]:
    if not fake.searched:
        return {}
    tried = [
        ("no guidance", 0.21, 0.8),
        ("autoguidance 2", -0.012, 0.85),
        ("autoguidance 3", 1, 0.3),
    ]
    return {
        "guidance": "autoguidance 2",
        "guidance_weight": 2.0,
        "guidance_reason": "kernel distance -0.012; without guidance 0.210",
        "search": [
            {
                "guidance": name,
                "evaluations": 20 if name == "no guidance" else 40,
                "images": 64 if name == "autoguidance 3" else 256,
                "kernel_distance": distance,
                "coverage": coverage,
                "copy_share": 0.004,
                "round": 1 if name == "autoguidance 3" else 3,
                "chosen": name == "autoguidance 2",
            }
            for name, distance, coverage in tried
        ],
    }


def write_evaluate(folder: Path, fake: Fake) -> None:
    """Write evaluate/ for the given decision."""
    from report.fake_verdict import fake_verdict  # which imports this module

    verdict = fake_verdict(
        fake.classes,
        fake.training,
        fake.held_out,
        sum(fake.accepted),
        decision=fake.decision,
        gain=fake.gain,
        share=fake.share,
    )
    write_json(folder / "verdict.json", verdict)
    write_json(folder / "metrics.json", {"gain_points": verdict["gain_points"]})
    summary = {key: verdict[key] for key in ("decision", "sentence", "gain_points")}
    write_json(folder / "summary.json", summary)
    finish(folder, fake.params)
