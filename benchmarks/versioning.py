"""What DVC takes for many small images: the sample store's Parquet shards, or a folder of PNG.

`python benchmarks/versioning.py --json FILE`. The same images, once as the sample store that
`prepare` writes and once as one PNG file each in a sub-folder a class, are added to DVC in a
project of their own, pushed to a remote that is a folder, pulled in a new clone, and checked out
from the cache once more. Each step is one `dvc` command, timed from outside as a user sees it, with
the second or so that the command needs to start (`start`). Files are counted in the workspace and
in the remote. `--quick` takes 5,000 images, in under two minutes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from pipeline.data.images import encode_png
from pipeline.data.store import make_samples
from pipeline.data.store_writer import StoreWriter
from pipeline.device import usable_cores

CLASSES = tuple(f"class-{k}" for k in range(10))
STEPS = ("start", "add", "push", "pull", "checkout")
_ROWS = 5_000  # in memory at once

Numbers = npt.NDArray[Any]


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    images: Annotated[int, typer.Option(min=100, help="Images of both forms.")] = 100_000,
    side: Annotated[int, typer.Option(min=8, max=1024, help="Of each image, in px.")] = 28,
    quick: Annotated[bool, typer.Option(help="A small part, in two minutes.")] = False,
) -> None:
    """Time DVC on both forms and print how they compare."""
    images = 5_000 if quick else images
    result: dict[str, Any] = {"cores": usable_cores(), "images": images, "side_px": side}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / "site")}
        for form in ("store", "folder"):
            typer.echo(f"{form}: writing {images:,} images of {side} px ...", err=True)
            result[form] = measure(root / form, form, images, side)
            shutil.rmtree(root / form)
    for line in table(result):
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def measure(root: Path, form: str, images: int, side_px: int) -> dict[str, float]:
    """Return seconds of each step, and files and bytes, of one form in a project below `root`."""
    project, remote, clone = root / "project", root / "remote", root / "clone"
    write_images(project / "data", form, images, side_px)
    _call(project, "git", "init", "--quiet")
    _dvc(project, "init", "--quiet")
    _dvc(project, "remote", "add", "--default", "folder", str(remote))
    found = {"start": _dvc(project, "version"), "add": _dvc(project, "add", "--quiet", "data")}
    _call(project, "git", "add", "--all")
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    _call(project, "git", *who, "commit", "--quiet", "--message", "data")
    found["push"] = _dvc(project, "push", "--quiet")
    _call(root, "git", "clone", "--quiet", str(project), str(clone))
    found["pull"] = _dvc(clone, "pull", "--quiet")
    shutil.rmtree(clone / "data")
    found["checkout"] = _dvc(clone, "checkout", "--quiet")
    here, there = _files(clone / "data"), _files(remote)
    assert sum(map(_size, here)) == sum(map(_size, _files(project / "data")))
    return {
        **found,
        "files": len(here),
        "remote_files": len(there),
        "bytes": sum(map(_size, here)),
    }


def write_images(folder: Path, form: str, images: int, side_px: int) -> None:
    """Write seeded grey images, no two equal: as a sample store, or as a PNG file each."""
    if form == "store":
        with StoreWriter(folder, CLASSES, side_px, "L") as writer:
            for _, labels, pixels in _batches(images, side_px):
                writer.add(make_samples(pixels, labels, "train", "real"))
            writer.close()
        return
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for rows, labels, pixels in _batches(images, side_px):
        for row, label, image in zip(rows, labels, pixels, strict=True):
            (folder / CLASSES[label] / f"{row:06d}.png").write_bytes(encode_png(image))


def _batches(images: int, side_px: int) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Give rows, labels and pixels of (N, side, side, 1), some thousand at a time."""
    random = np.random.default_rng(0)
    for start in range(0, images, _ROWS):
        rows = np.arange(start, min(start + _ROWS, images))
        pixels = random.integers(0, 64, (len(rows), side_px, side_px, 1), dtype=np.uint8)
        yield rows, rows % len(CLASSES), pixels


def table(result: dict[str, Any]) -> list[str]:
    """Return a Markdown table of both forms and how many times the folder takes."""
    lines = ["| | store | folder of PNG | times |", "| --- | --- | --- | --- |"]
    names = [(f"`dvc {step}`, seconds" if step != "start" else "start", step) for step in STEPS]
    names += [("files", "files"), ("files in the remote", "remote_files"), ("MB", "bytes")]
    for title, name in names:
        one, other = (result[form][name] for form in ("store", "folder"))
        scale, digits = (1e6, 1) if name == "bytes" else (1, 1 if name in STEPS else 0)
        shown = [f"{value / scale:,.{digits}f}" for value in (one, other)]
        lines.append(f"| {title} | {shown[0]} | {shown[1]} | {other / one:.1f} |")
    return lines


def _dvc(folder: Path, *arguments: str) -> float:
    return _call(folder, sys.executable, "-m", "dvc", *arguments)


def _call(folder: Path, *command: str) -> float:
    began = perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - began


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(path: Path) -> int:
    return path.stat().st_size


if __name__ == "__main__":
    typer.run(main)
