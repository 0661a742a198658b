"""What do the checks find? Known faults in a sound set: the share found, and the false alarms.

`python benchmarks/planted_faults.py --rows 2000 --json FILE` takes Fashion-MNIST (`--quick`: the
embedded digits) and plants: 1 % exact duplicates across given splits, 1 % near duplicates (a fifth
each of shift, light, JPEG, noise, crop), 2 % wrong labels, 0.5 % corrupt files. Every image is
written as a PNG file, decoded as `prepare` decodes, and looked through by `pipeline.checks`. The
same checks on the same images without faults say how often they cry wolf.
"""

import importlib.util
import io
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from pipeline.checks import facts as checked_facts
from pipeline.checks.descriptors import describe
from pipeline.checks.examine import Checked, examine
from pipeline.checks.examined import Examined, Settings
from pipeline.checks.label_issues import LIKELY_WRONG, disputed, held_out_probabilities
from pipeline.checks.leaks import ALSO_IN_TEST
from pipeline.data.decoding import Decoded, Limits, decode_image, quiet_pillow
from pipeline.data.images import Images, encode_png
from pipeline.hashing import digest_pixels
from pipeline.readers.idx_files import find_idx, read_idx

NEAR = ("shift", "light", "JPEG", "noise", "crop")
DAMAGES = ("cut short", "zeroed header", "empty", "text", "flipped bytes")
_SHARES = {"exact": 0.01, "near": 0.01, "label": 0.02, "corrupt": 0.005}
_LIMITS = Limits(1 << 20, 1 << 20)


@dataclass
class Planted:
    """Files with faults, and which those are.

    Attributes:
        files: PNG bytes of each image, some of them damaged.
        labels: of each, some of them wrong.
        splits: given to each.
        exact: row -> the row that it copies.
        near: row -> (the row that it was made of, how).
        wrong: rows with a wrong label.
        corrupt: row -> how it was damaged.
    """

    files: list[bytes]
    labels: list[int]
    splits: list[str]
    exact: dict[int, int] = field(default_factory=dict)
    near: dict[int, tuple[int, str]] = field(default_factory=dict)
    wrong: set[int] = field(default_factory=set)
    corrupt: dict[int, str] = field(default_factory=dict)


def main(
    folder: Annotated[Path, typer.Option("--idx", help="Folder of IDX files, as MNIST's.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="The embedded digits instead.")] = False,
    rows: Annotated[int, typer.Option(min=200, help="Images at most, before faults.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of the faults.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Plant faults, look for them, and say what was found."""
    images, labels = read_digits() if quick else read_folder(folder)
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(images))[:rows])
    figures = measure(images[chosen], labels[chosen], random, seed)
    figures = {"set": "digits" if quick else folder.name, "seed": seed, **figures}
    for line in table(figures):
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_digits() -> tuple[Images, npt.NDArray[np.int64]]:
    """Return (1797, 8, 8, 1) uint8 and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(digits.images * 16, 0, 255).astype(np.uint8)[..., None]
    return images, digits.target.astype(np.int64)


def read_folder(folder: Path) -> tuple[Images, npt.NDArray[np.int64]]:
    """Return the training images and labels of a folder of IDX files."""
    images = find_idx(folder, "train", "images", 3)
    labels = find_idx(folder, "train", "labels", 1)
    if images is None or labels is None:
        raise typer.BadParameter(f"{folder} holds no train-images and train-labels in IDX format")
    return read_idx(images, 3)[..., None], read_idx(labels, 1).astype(np.int64)


def measure(
    images: Images, labels: npt.NDArray[np.int64], random: np.random.Generator, seed: int
) -> dict[str, Any]:
    """Return the figures: found and false alarms by kind, with faults and without."""
    clean = Planted(
        [encode_png(image) for image in images],
        labels.tolist(),
        np.where(random.random(len(images)) < 0.25, "test", "train").tolist(),
    )
    base, _ = look(clean, seed)
    faulty = plant(clean, images, random)
    found, kept = look(faulty, seed)
    return {
        "rows": len(images),
        "files_with_faults": len(faulty.files),
        **judge(faulty, found, kept),
        "cleanlab": compare_cleanlab(images, labels, faulty.wrong, seed),
        "near_by_kind": _near_by_kind(faulty, found, kept),
        "without_faults": {
            **{one.check: one.count for one in base.checked.findings},
            "near_images": int(len(base.checked.clusters) - len(np.unique(base.checked.clusters))),
        },
        "seconds": round(found.seconds, 2),
        "decode_microseconds": round(found.decode_microseconds, 1),
        "facts_microseconds": round(found.facts_microseconds, 1),
    }


def plant(clean: Planted, images: Images, random: np.random.Generator) -> Planted:
    """Return the set with its faults; no image has two of them."""
    count = len(images)
    out = Planted(list(clean.files), list(clean.labels), list(clean.splits))
    order = random.permutation(count).tolist()

    def draw(kind: str) -> list[int]:
        return [order.pop() for _ in range(max(1, round(_SHARES[kind] * count)))]

    def append(data: bytes, row: int, split: str) -> int:
        out.files.append(data)
        out.labels.append(out.labels[row])
        out.splits.append(split)
        return len(out.files) - 1

    for row in draw("exact"):
        other = "train" if out.splits[row] == "test" else "test"
        out.exact[append(out.files[row], row, other)] = row
    for i, row in enumerate(draw("near")):
        how = NEAR[i % len(NEAR)]
        changed = encode_png(alter(images[row], how, random))
        out.near[append(changed, row, out.splits[row])] = (row, how)
    classes = max(out.labels) + 1
    for row in draw("label"):
        out.labels[row] = int((out.labels[row] + random.integers(1, classes)) % classes)
        out.wrong.add(row)
    for i, row in enumerate(draw("corrupt")):
        out.corrupt[row] = how = DAMAGES[i % len(DAMAGES)]
        out.files[row] = damage(out.files[row], how)
    return out


def alter(image: Images, how: str, random: np.random.Generator) -> Images:
    """Return nearly the same (H, W, 1) image."""
    side = image.shape[0]
    grey = image[:, :, 0]
    step = max(1, round(0.04 * side))
    if how == "shift":
        axis, by = int(random.integers(2)), step * int(random.choice((-1, 1)))
        turned = np.pad(grey, step, mode="edge")
        changed = np.roll(turned, by, axis)[step:-step, step:-step]
    elif how == "light":
        gain, offset = random.uniform(0.8, 1.2), random.uniform(-15, 15)
        changed = np.clip(grey * gain + offset, 0, 255)
    elif how == "JPEG":
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="JPEG", quality=60)
        changed = np.asarray(Image.open(buffer))
    elif how == "noise":
        changed = np.clip(grey + random.normal(0, 8, grey.shape), 0, 255)
    else:
        box = (step, step, side - step, side - step)
        changed = np.asarray(
            Image.fromarray(grey).crop(box).resize((side, side), Image.Resampling.BICUBIC)
        )
    return np.asarray(changed, dtype=np.uint8)[:, :, None]


def damage(data: bytes, how: str) -> bytes:
    """Return the bytes of a file that is no sound image any more."""
    if how == "cut short":
        return data[: len(data) // 2]
    if how == "zeroed header":
        return bytes(16) + data[16:]
    if how == "empty":
        return b""
    if how == "text":
        return b"<html>404 Not Found</html>"
    at = data.index(b"IDAT") + 8  # within the compressed pixels
    return data[:at] + bytes(255 - byte for byte in data[at : at + 8]) + data[at + 8 :]


@dataclass
class Looked:
    """What was found, and how long it took."""

    checked: Checked
    rejected: dict[int, str]
    seconds: float
    decode_microseconds: float
    facts_microseconds: float


def look(planted: Planted, seed: int) -> tuple[Looked, list[int]]:
    """Decode and examine; returns also which file each examined row is."""
    pixels: list[Images] = []
    rows: list[int] = []
    rejected: dict[int, str] = {}
    began = time.process_time()
    with quiet_pillow():
        for row, data in enumerate(planted.files):
            decoded = decode_image(data, _LIMITS)
            if isinstance(decoded, Decoded):
                pixels.append(decoded.pixels)
                rows.append(row)
            else:
                rejected[row] = decoded.reason
    decoded_at = time.process_time()
    facts = checked_facts.measure([checked_facts.look(image) for image in pixels])
    measured_at = time.process_time()
    images = np.stack(pixels)
    start = time.perf_counter()
    checked = examine(
        Examined(
            names=[f"{row:06d}.png" for row in rows],
            labels=np.asarray([planted.labels[row] for row in rows], dtype=np.int64),
            classes=tuple(f"class {label}" for label in range(max(planted.labels) + 1)),
            splits=[planted.splits[row] for row in rows],
            groups=(),
            ids=[digest_pixels(image) for image in images],
            facts=facts,
            images=lambda some: images[some],
        ),
        Settings(drop_label_issues=True, seed=seed),
        lambda task, done, total: None,
    )
    looked = Looked(
        checked,
        rejected,
        time.perf_counter() - start,
        1e6 * (decoded_at - began) / len(planted.files),
        1e6 * (measured_at - decoded_at) / len(rows),
    )
    return looked, rows


def judge(planted: Planted, found: Looked, rows: list[int]) -> dict[str, Any]:
    """Return planted, found and false alarms by kind of fault."""
    reasons = {rows[one.row]: one.reason for one in found.checked.aside}
    leaked = {row for row, reason in reasons.items() if reason == ALSO_IN_TEST}
    doubted = {row for row, reason in reasons.items() if reason == LIKELY_WRONG}
    exact = {frozenset(pair) for pair in planted.exact.items()}
    twins = {row for pair in exact for row in pair}
    # Held-out images are only reported; the wrong labels among them are counted nowhere.
    wrong = {row for row in planted.wrong if planted.splits[row] != "test"}
    near = sum(_near_found(planted, found, rows).values())
    in_near = {row for row, (source, _) in planted.near.items()}
    clusters = found.checked.clusters
    joined = Counter(
        int(cluster)
        for row, cluster in zip(rows, clusters, strict=True)
        if row not in in_near and row not in planted.exact
    )
    return {
        "exact": _account(len(exact), sum(bool(leaked & pair) for pair in exact), leaked - twins),
        "near": {
            "planted": len(planted.near),
            "found": near,
            "share": round(near / len(planted.near), 3),
            "false_alarms": sum(count - 1 for count in joined.values()),
        },
        "label": _account(len(wrong), len(doubted & wrong), doubted - wrong),
        "corrupt": _account(
            len(planted.corrupt),
            len(found.rejected.keys() & planted.corrupt.keys()),
            found.rejected.keys() - planted.corrupt.keys(),
        ),
    }


def compare_cleanlab(
    images: Images, labels: npt.NDArray[np.int64], wrong: set[int], seed: int
) -> dict[str, dict[str, int]] | None:
    """Return what two rules find by the same probabilities, held-out images too.

    `odds` is that of `pipeline.checks`, `both` the stricter of cleanlab's; None without cleanlab.
    """
    if importlib.util.find_spec("cleanlab") is None:
        return None
    from cleanlab.filter import find_label_issues

    rows = np.asarray(sorted(wrong), dtype=np.int64)
    classes = int(labels.max()) + 1
    shifts = np.random.default_rng(seed).integers(1, classes, len(rows))
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + shifts) % classes
    probabilities = held_out_probabilities(
        describe(images), noisy, np.arange(len(images)), Settings(seed=seed), lambda *step: None
    )
    flags = find_label_issues(noisy, probabilities, filter_by="both", n_jobs=1)
    both = set(np.flatnonzero(flags).tolist())
    odds = set(disputed(noisy, probabilities).tolist())
    return {
        name: {"planted": len(wrong), "found": len(one & wrong), "false_alarms": len(one - wrong)}
        for name, one in (("odds", odds), ("both", both))
    }


def _account(planted: int, found: int, false: set[int]) -> dict[str, Any]:
    share = round(found / planted, 3) if planted else None
    return {"planted": planted, "found": found, "share": share, "false_alarms": len(false)}


def _near_found(planted: Planted, found: Looked, rows: list[int]) -> dict[int, bool]:
    at = {row: i for i, row in enumerate(rows)}
    clusters = found.checked.clusters
    return {
        row: bool(clusters[at[row]] == clusters[at[source]])
        for row, (source, _) in planted.near.items()
        if row in at and source in at
    }


def _near_by_kind(planted: Planted, found: Looked, rows: list[int]) -> dict[str, str]:
    joined = _near_found(planted, found, rows)
    kinds = {how: [row for row, (_, one) in planted.near.items() if one == how] for how in NEAR}
    return {
        how: f"{sum(joined.get(row, False) for row in some)} of {len(some)}"
        for how, some in kinds.items()
        if some
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Return the figures as lines of Markdown."""
    lines = [
        f"{figures['set']}, {figures['rows']:,} images, seed {figures['seed']}",
        "| fault | planted | found | share | false alarms |",
        "|---|---|---|---|---|",
    ]
    for kind in ("exact", "near", "label", "corrupt"):
        one = figures[kind]
        lines.append(
            f"| {kind} | {one['planted']} | {one['found']} | {one['share']} | "
            f"{one['false_alarms']} |"
        )
    by_kind = ", ".join(f"{how} {text}" for how, text in figures["near_by_kind"].items())
    told = ", ".join(f"{name} {count}" for name, count in figures["without_faults"].items())
    if figures["cleanlab"]:
        lines.append(f"wrong labels, held-out images too: {json.dumps(figures['cleanlab'])}")
    lines += [
        f"near duplicates by kind: {by_kind}",
        f"without faults: {told or 'nothing found'}",
        f"checks {figures['seconds']} s; an image: decode {figures['decode_microseconds']} us, "
        f"facts {figures['facts_microseconds']} us",
    ]
    return lines


if __name__ == "__main__":
    typer.run(main)
