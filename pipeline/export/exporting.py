"""Give a finished store away: lay it out, describe it, list every file and row, and sign that.

The export appears in one rename, whole or not at all. Nothing in it depends on the time or the
machine: the same store, key and version of Replenish give the same bytes.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import __version__
from pipeline.data.store import INFO, SPLITS, StoreInfo, read_info
from pipeline.errors import InputError, StageError
from pipeline.export.cards import README, card, read_card
from pipeline.export.choices import LAYOUTS, Layout
from pipeline.export.croissant import CROISSANT, croissant
from pipeline.export.layouts import (
    Shard,
    write_coco,
    write_folder,
    write_parquet,
    write_webdataset,
)
from pipeline.export.manifests import (
    EXPORT_FORMAT,
    SHARD_FORMAT,
    SHARDS,
    ExportManifest,
    FileEntry,
    ShardManifest,
    file_entry,
    is_export,
    write_model,
)
from pipeline.export.names import one_line
from pipeline.export.rows import ORIGINS
from pipeline.export.signing import (
    PUBLIC_KEY,
    SIGNATURE_SUFFIX,
    fingerprint,
    load_private,
    public_pem,
    raw_public,
)
from pipeline.folders import MANIFEST, replace_folder, temporary_name, write_json
from pipeline.hashing import digest_file, digest_lines, digest_sorted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

IMAGES_PER_SHARD = 1_000
LINEAGE = "lineage"
# Name in the export -> file of ids in an artifacts folder.
LINEAGE_FILES = {
    "training_ids": "train/training_ids.txt",
    "base_ids": "pretrain/base/training_ids.txt",
}
TOOL = f"replenish {__version__}"
Progress = Callable[[int, int], None]
_WRITERS = {
    "store": write_parquet,
    "huggingface": write_parquet,
    "folder": write_folder,
    "webdataset": write_webdataset,
    "coco": write_coco,
}


@dataclass(frozen=True)
class ExportSummary:
    """What was given away.

    Attributes:
        layout: how it is laid out.
        rows: of all splits.
        synthetic_rows: those that a model drew.
        shards: signed or not, each with its manifest.
        files: all of the export, signatures included.
        fingerprint: of the key that signed, None without.
        digest: of the store's rows.
    """

    layout: Layout
    rows: int
    synthetic_rows: int
    shards: int
    files: int
    fingerprint: str | None
    digest: str


def export(
    store: Path,
    out: Path,
    layout: Layout,
    key: Path | None = None,
    *,
    force: bool = False,
    images_per_shard: int = IMAGES_PER_SHARD,
    lineage: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> ExportSummary:
    """Write a finished sample store in another layout, with manifests, into `out`.

    Args:
        store: folder of the sample store; read once, some hundreds of images at a time.
        out: folder to write; must be absent or empty, or an export with `force`.
        layout: store, folder, webdataset, huggingface or coco.
        key: PEM file of the private key to sign with; None signs nothing.
        force: replace an earlier export.
        images_per_shard: images that share a manifest; the Parquet layouts keep the store's cut.
        lineage: name -> file of ids, one a line, that the generator (`training_ids`) or its base
            (`base_ids`) learned from; they go into the export, for `verify` to compare.
        progress: told rows done and rows in all, after each shard.

    Raises:
        InputError: no store, key or layout of that kind, or `out` cannot be written to.
        StageError: the store is damaged.
    """
    if layout not in LAYOUTS:
        raise InputError(f"format {layout!r}: unknown; use one of {', '.join(LAYOUTS)}")
    if images_per_shard < 1:
        raise InputError(f"images per shard: {images_per_shard}; give at least 1")
    info = read_info(store)
    private = None if key is None else load_private(key)
    _check_out(store, out, key, force)
    work = temporary_name(out.absolute(), "export")
    try:
        shutil.rmtree(work, ignore_errors=True)  # what an interrupted export left
        work.mkdir(parents=True)
        summary = _fill(
            work, store, info, layout, private, images_per_shard, lineage or {}, progress
        )
        replace_folder(work, out.absolute())
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror or error}; the export {out} was not written"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return summary


def lineage_files(artifacts: Path) -> dict[str, Path]:
    """Return the lists of ids in an artifacts folder that a generator and its base learned from."""
    paths = {name: artifacts / path for name, path in LINEAGE_FILES.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def _check_out(store: Path, out: Path, key: Path | None, force: bool) -> None:
    here, there = out.resolve(), store.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise InputError(f"{out}: stands inside of the store {store}, or around it; give another")
    if key is not None and key.resolve().is_relative_to(here):
        raise InputError(f"{key}: the private key must not lie in {out}, which is given away")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is not a folder; give another --out")
    if out.is_dir() and any(out.iterdir()):
        if not is_export(out):
            raise InputError(f"{out}: holds files that are no export; give another --out")
        if not force:
            raise InputError(f"{out}: holds an export already; give --force to replace it")


def _fill(
    out: Path,
    store: Path,
    info: StoreInfo,
    layout: Layout,
    private: "Ed25519PrivateKey | None",
    images_per_shard: int,
    lineage: Mapping[str, Path],
    progress: Progress | None,
) -> ExportSummary:
    total = sum(sum(counts.values()) for counts in info.counts.values())
    own: dict[str, FileEntry] = {}  # of shards that are themselves one file
    shard_files: set[str] = set()
    shards: list[str] = []
    origins: dict[Literal["real", "synthetic"], int] = {"real": 0, "synthetic": 0}
    digests = bytearray()
    (out / SHARDS).mkdir()
    for split in SPLITS:
        if not sum(info.counts.get(split, {}).values()):
            continue
        for shard in _WRITERS[layout](store, info, split, out, images_per_shard):
            name = f"{SHARDS}/{shard.name}.json"
            data = write_model(out / name, _manifest(shard))
            _sign(out / name, data, private)
            shards.append(name)
            shard_files.update(shard.files)
            if len(shard.files) == 1:
                own.update(shard.files)
            for row in shard.rows:
                origins[row.origin] += 1
            digests += b"".join(map(bytes.fromhex, shard.digests))
            if progress is not None:
                progress(sum(origins.values()), total)
    if digest_sorted(bytes(digests)) != info.digest:
        raise StageError(
            f"{store}: its rows are not those of its {INFO}; check it with `replenish verify`"
        )
    if layout == "store":
        shutil.copyfile(store / INFO, out / INFO)
    for name, path in lineage.items():
        (out / LINEAGE).mkdir(exist_ok=True)
        shutil.copyfile(path, out / LINEAGE / f"{name}.txt")
    public = None if private is None else raw_public(private.public_key())
    if private is not None:
        (out / PUBLIC_KEY).write_bytes(public_pem(private.public_key()))
    mark = None if public is None else fingerprint(public)
    front, text = read_card(store)
    (out / README).write_text(card(layout, info, front, text, mark), encoding="utf-8")
    files = _other_files(out, shard_files)
    title = one_line(str(front.get("pretty_name") or "")) or "Labelled images"
    write_json(out / CROISSANT, croissant(layout, info, title, {**own, **files}))
    files[CROISSANT] = file_entry((out / CROISSANT).read_bytes())
    manifest = ExportManifest(
        format=EXPORT_FORMAT,
        layout=layout,
        classes=list(info.classes),
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        store_digest=info.digest,
        origins=origins,
        files=files,
        shards=shards,
        public_key=None if public is None else public.hex(),
        fingerprint=mark,
        tool=TOOL,
    )
    _sign(out / MANIFEST, write_model(out / MANIFEST, manifest), private)
    return ExportSummary(
        layout=layout,
        rows=sum(origins.values()),
        synthetic_rows=origins["synthetic"],
        shards=len(shards),
        files=sum(1 for _ in _walk(out)),
        fingerprint=mark,
        digest=info.digest,
    )


def _manifest(shard: Shard) -> ShardManifest:
    found: Counter[str] = Counter(row.origin for row in shard.rows)
    return ShardManifest.model_validate(
        {
            "format": SHARD_FORMAT,
            "shard": shard.name,
            "split": shard.split,
            "files": shard.files,
            "origins": {origin: found[origin] for origin in ORIGINS},
            "row_digest": digest_lines(shard.digests),
            "rows": shard.rows,
            "tool": TOOL,
        }
    )


def _sign(path: Path, data: bytes, private: "Ed25519PrivateKey | None") -> None:
    if private is not None:
        path.with_name(f"{path.name}{SIGNATURE_SUFFIX}").write_bytes(private.sign(data))


def _other_files(out: Path, shard_files: set[str]) -> dict[str, FileEntry]:
    """Return what is to be noted of all files but those of the shards and the signatures."""
    names = [name for name in _walk(out) if name not in shard_files]
    return {
        name: FileEntry(sha256=digest_file(out / name), bytes=(out / name).stat().st_size)
        for name in sorted(names)
        if not name.endswith(SIGNATURE_SUFFIX)
    }


def _walk(out: Path) -> Iterator[str]:
    for folder, _, names in os.walk(out):
        for name in names:
            yield (Path(folder) / name).relative_to(out).as_posix()
