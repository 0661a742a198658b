"""Runs cases through `prepare` as a user would, and says what became of each."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from corpus.case import good_pixels
from readers.fixtures import FORMATS, csv_manifest

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.hashing import digest_pixels
from pipeline.params import PrepareParams
from pipeline.stages.prepare import run
from pipeline.tracking.tracker import NullTracker

SET, OUT, CWD, OUTSIDE, CANARY = "set", "out", "cwd", "outside.png", "canary"
LIMITS = {
    "max_file_bytes": 1 << 20,
    "max_image_pixels": 1 << 20,
    "max_rows": 1_000,
    "max_classes": 20,
}

Base = tuple[str, Callable[[Path], Path]]


@dataclass(frozen=True)
class Ran:
    """What prepare made of some cases.

    Attributes:
        error: text of the InputError, or None.
        reasons: name of what was set aside -> its reasons.
        ids: of the rows that were kept.
        texts: of quarantine.jsonl, checks.json and summary.json together.
    """

    error: str | None
    reasons: dict[str, list[str]]
    ids: list[str]
    texts: str


def table_rows(root: Path) -> Path:
    """Write a manifest with all columns."""
    path = csv_manifest(root)
    head, *lines = path.read_text().splitlines()
    lines = [f"{head},split,group,time,mask,text", *(f"{line},,,,," for line in lines)]
    path.write_text("\n".join(lines) + "\n")
    return path


# The good sets that are damaged: those of the readers' tests, and the shared ones.
BASES: dict[str, Base] = {
    **FORMATS,
    "image folder": FORMATS["folder"],
    "odd names": FORMATS["folder"],
    "table rows": ("manifest", table_rows),
    "json rows": FORMATS["metadata_jsonl"],
    "image cells": FORMATS["parquet_images"],
    "tar members": FORMATS["webdataset"],
    "coco items": FORMATS["coco"],
    "voc files": FORMATS["voc"],
    "npz rows": FORMATS["npz"],
}


@cache
def good_ids() -> frozenset[str]:
    return frozenset(digest_pixels(image) for image in good_pixels())


def place(good: Path, root: Path) -> Path:
    """Copy a good set below `root`, beside things that must stay as they are."""
    (root / CWD).mkdir(parents=True)
    (root / CANARY).write_text("sings")
    (root / OUTSIDE).write_bytes(encode_png(good_pixels()[0]))
    shutil.copytree(good, root / SET)
    return root / SET


def prepare(base: str, path: Path | str, root: Path) -> Ran:
    """Run prepare on `path` into `root / OUT`."""
    params = PrepareParams(
        source=BASES[base][0],
        path=str(path),
        pool_path=str(root / "none"),
        image_size_px=8,
        image_mode="L",
        near_duplicates="off",
        label_issues="off",
        imbalance=None,
        **LIMITS,
    )
    out = root / OUT / "prepare"
    try:
        run(params, {}, out, NullTracker())
    except InputError as error:
        return Ran(str(error), {}, [], "")
    names = ("quarantine.jsonl", "checks.json", "summary.json")
    reasons: dict[str, list[str]] = {}
    for line in (out / names[0]).read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        reasons.setdefault(told["file"], []).append(told["reason"])
    ids: list[str] = []
    for shard in sorted((out / "dataset" / "data").glob("*.parquet")):
        ids += pq.read_table(shard, columns=["id"]).column("id").to_pylist()
    return Ran(None, reasons, ids, "".join((out / name).read_text("utf-8") for name in names))


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return path -> (kind, size, time of change) of all below `root`, its output excepted."""
    found: dict[str, tuple[int, int, int]] = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == root and OUT in folders:
            folders.remove(OUT)
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118 (names that are no text)
            status = os.lstat(path)
            found[path] = (stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns)
    return found
