"""How many images a second `prepare` reads, against torchvision's ImageFolder and `datasets`.

`python benchmarks/ingest.py --json FILE`. One folder of PNG files, a sub-folder a class, is read in
turns by three: `replenish prepare` (every file checked, decoded, measured, split, and written as a
sample store); torchvision's `ImageFolder` with Pillow, through a `DataLoader` with a worker a core,
which writes nothing; and `datasets`' `imagefolder`, written as Parquet with a process a core, which
decodes nothing. The ratios are medians over the turns. Checks of the whole set (near duplicates,
labels) are timed apart: neither peer has them. `--million` reads a million images and tells the
memory of all processes together. `--quick` takes 20,000 images and one turn.
"""

import json
import os
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cv2
import numpy as np
import psutil
import typer

from pipeline.data.images import encode_png
from pipeline.data.store import read_info
from pipeline.device import usable_cores
from pipeline.params import PrepareParams
from pipeline.readers.digits import read_digits
from pipeline.tracking.tracker import NullTracker

_POLL_SECONDS = 0.1


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    images: Annotated[int, typer.Option(min=100, help="Images of the folder.")] = 100_000,
    side: Annotated[int, typer.Option(min=8, max=1024, help="Of each image, in px.")] = 28,
    photos: Annotated[bool, typer.Option(help="JPEG photographs, not PNG.")] = False,
    turns: Annotated[int, typer.Option(min=1, help="Times that each is timed.")] = 3,
    million: Annotated[bool, typer.Option(help="Read 1,000,000 images once, no peers.")] = False,
    quick: Annotated[bool, typer.Option(help="A small part, in two minutes.")] = False,
) -> None:
    """Time all three and print how they compare."""
    if million:
        images, turns = 1_000_000, 1
    elif quick:
        images, turns = 20_000, 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kind = "JPEG" if photos else "PNG"
        typer.echo(f"writing {images:,} {kind} files of {side} px ...", err=True)
        write_folder(root / "raw", images, side, photos)
        result = {"cores": usable_cores(), "images": images, "side_px": side, "format": kind}
        result |= _million(root) if million else _compare(root, images, turns)
    typer.echo(json.dumps(result, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def write_folder(root: Path, count: int, side: int, photos: bool = False) -> None:
    """Write so many distinct images: digits, enlarged, moved, and with a grain of noise.

    With `photos`, parts of scikit-learn's two photographs, as colour JPEG.
    """
    if photos:
        _write_photos(root, count, side)
        return
    digits = read_digits()
    random = np.random.default_rng(0)
    for row in range(count):
        label = digits.classes[int(digits.labels[row % len(digits)])]
        image = digits.contents.fetch(row % len(digits))
        large = cv2.resize(np.asarray(image), (side, side), interpolation=cv2.INTER_LINEAR)
        moved = np.roll(large, random.integers(-side // 8, side // 8 + 1, 2), axis=(0, 1))
        noise = random.integers(0, 3, moved.shape, dtype=np.uint8)
        # A thousand a folder: one of 100,000 files is slow on any file system.
        file = root / label / f"{row // 1000:04d}" / f"{row:07d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(np.maximum(moved, noise)[:, :, None]))


def _write_photos(root: Path, count: int, side: int) -> None:
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images
    random = np.random.default_rng(0)
    for row in range(count):
        picture = pictures[row % 2]
        height, width = picture.shape[:2]
        cut = min(side, height, width)
        top, left = (int(random.integers(0, n - cut + 1)) for n in (height, width))
        part = cv2.resize(picture[top : top + cut, left : left + cut], (side, side))
        file = root / ("china", "flower")[row % 2] / f"{row // 2000:04d}" / f"{row:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), part[:, :, ::-1])


def _compare(root: Path, images: int, turns: int) -> dict[str, Any]:
    sides: dict[str, Callable[[], int]] = {
        "replenish": lambda: run_prepare(root),
        "imagefolder": lambda: run_image_folder(root / "raw"),
        "datasets": lambda: run_datasets(root),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for work in sides.values():
        work()  # once untimed: modules are imported, files are in the page cache
    for _ in range(turns):
        for name, work in sides.items():
            start = perf_counter()
            done = work()
            seconds[name].append(perf_counter() - start)
            if done != images:
                raise RuntimeError(f"{name} read {done} of {images} images")
            typer.echo(f"{name}: {images / seconds[name][-1]:,.0f} images/s", err=True)
    start = perf_counter()
    run_prepare(root, near_duplicates="auto", label_issues="auto")
    checked = perf_counter() - start
    rates = {f"{n}_images_per_second": images / statistics.median(s) for n, s in seconds.items()}
    pairs = {
        f"ratio_vs_{name}": statistics.median(
            theirs / ours for theirs, ours in zip(seconds[name], seconds["replenish"], strict=True)
        )
        for name in ("imagefolder", "datasets")
    }
    return rates | pairs | {"with_all_checks_images_per_second": images / checked}


def _million(root: Path) -> dict[str, Any]:
    start = perf_counter()
    with PeakMemory() as memory:
        done = run_prepare(root, near_duplicates="auto", label_issues="auto")
    return {"seconds": perf_counter() - start, "read": done, "peak_mib": memory.peak_bytes / 2**20}


def run_prepare(root: Path, **changes: Any) -> int:
    """Prepare the folder anew and return how many rows the store has."""
    from pipeline.stages.prepare import run as prepare  # here: worker processes need no stage

    shutil.rmtree(root / "artifacts", ignore_errors=True)
    settings = {"near_duplicates": "off", "label_issues": "off"} | changes
    params = PrepareParams(
        source="folder",
        path=str(root / "raw"),
        pool_path=str(root / "none"),
        imbalance=None,
        **settings,
    )
    prepare(params, {}, root / "artifacts" / "prepare", NullTracker())
    counts = read_info(root / "artifacts" / "prepare" / "dataset").counts
    return sum(number for classes in counts.values() for number in classes.values())


def run_image_folder(folder: Path) -> int:
    """Decode every file with torchvision's ImageFolder and return how many there were."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder), transform=np.asarray)
    loader = DataLoader(found, 256, num_workers=usable_cores(), collate_fn=len)
    return sum(loader)


def run_datasets(root: Path) -> int:
    """Build Parquet files with `datasets` and return how many rows they have."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    cache, out = root / "cache", root / "parquet"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    found = load_dataset(
        "imagefolder",
        data_files={"train": str(root / "raw" / "**" / "*.*")},
        cache_dir=str(cache),
        num_proc=usable_cores(),
        split="train",
    )
    found.to_parquet(out / "train.parquet")
    return len(found)


class PeakMemory:
    """The most memory that this process and its children hold together, while it is entered."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.is_set():
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss  # shared pages count once
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            sleep(_POLL_SECONDS)


if __name__ == "__main__":
    typer.run(main)
