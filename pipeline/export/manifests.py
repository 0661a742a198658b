"""What an export says of itself: one manifest a shard, one of the whole; each may be signed.

    manifest.json               the whole: classes, rows, files, the shards' manifests, the key
    manifest.json.sig           its signature
    manifests/train-00000.json  one shard: its files and its rows
    manifests/train-00000.json.sig

A shard's files stand in its own manifest, whose sha256 stands in the manifest of the whole: so one
signature reaches every byte, and no list grows with the number of images. All is plain JSON without
times or names of machines: the same store and key give the same bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.data.images import ImageMode
from pipeline.errors import InputError
from pipeline.export.choices import Layout
from pipeline.folders import MANIFEST, write_json

EXPORT_FORMAT: Final = "replenish-export-1"
SHARD_FORMAT: Final = "replenish-shard-1"
SHARDS = "manifests"
MAX_MANIFEST_BYTES = 64 << 20  # some 250,000 rows

_Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Origin = Literal["real", "synthetic"]
_Count = Annotated[int, Field(ge=0)]
_Split = Literal["train", "validation", "test", "pool"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Model):
    """A file: its sha256 as `sha256sum` prints it, and its size in bytes."""

    sha256: _Digest
    bytes: _Count


class RowEntry(_Model):
    """A row.

    Attributes:
        image: file of the image, member of the tar, or number of the row in the Parquet file.
        id: digest of the pixels.
        label: index of the class, -1 in the pool.
        origin: real or synthetic.
        parent: id of the real image that a synthetic one was edited from, else None.
    """

    image: _Name
    id: _Digest
    label: Annotated[int, Field(ge=-1)]
    origin: _Origin
    parent: str | None = None


class ShardManifest(_Model):
    """A shard.

    Attributes:
        shard: its name.
        split: of all its rows.
        files: path in the export -> what it is.
        origins: real and synthetic -> rows.
        row_digest: digest over (split, label, origin, id) of its rows, whatever their order.
        rows: in order.
        tool: what wrote it.
    """

    format: Literal["replenish-shard-1"]
    shard: _Name
    split: _Split
    files: dict[_Name, FileEntry]
    origins: dict[_Origin, _Count]
    row_digest: _Digest
    rows: list[RowEntry]
    tool: str


class ExportManifest(_Model):
    """A whole export.

    Attributes:
        layout: how it is laid out.
        classes: class names; a label is an index into them.
        image_size_px: side of the square images.
        image_mode: L (grey) or RGB.
        store_digest: digest of the rows of the store that it was made from.
        origins: real and synthetic -> rows.
        files: path -> what it is, of every file but the shards', this one and the signatures.
        shards: paths of the shards' manifests; they stand in `files` too.
        public_key: 32 bytes as hex, None where nothing is signed.
        fingerprint: sha256 of the public key, None where nothing is signed.
        tool: what wrote it.
    """

    format: Literal["replenish-export-1"]
    layout: Layout
    classes: list[str]
    image_size_px: Annotated[int, Field(ge=1, le=16_384)]
    image_mode: ImageMode
    store_digest: _Digest
    origins: dict[_Origin, _Count]
    files: dict[_Name, FileEntry]
    shards: list[_Name]
    public_key: _Digest | None
    fingerprint: _Digest | None
    tool: str


_M = TypeVar("_M", bound=_Model)


def write_model(path: Path, model: _Model) -> bytes:
    """Write a manifest and return its bytes.

    Raises:
        InputError: it is larger than those who verify it will read.
    """
    write_json(path, model.model_dump(mode="json"))
    data = path.read_bytes()
    if len(data) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"{path.name}: a manifest of {len(data):,} bytes, of which {MAX_MANIFEST_BYTES:,} are "
            "read; ask for fewer images per shard, or write the store with fewer rows per shard"
        )
    return data


def parse_model(kind: type[_M], data: bytes) -> _M | str:
    """Return the manifest in `data`, or what is wrong with it, in one line."""
    try:
        return kind.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        return f"{where!r}: {first['msg']}"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # not JSON, not UTF-8, or numbers beyond all bounds
        return f"not JSON ({str(error)[:100]!r})"


def read_bounded(path: Path, limit: int = MAX_MANIFEST_BYTES) -> bytes | None:
    """Return the bytes of a file, or None where it has more than `limit`."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    return None if len(data) > limit else data


def file_entry(data: bytes) -> FileEntry:
    """Return what is noted of a file with these bytes."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def is_export(folder: Path) -> bool:
    """Say whether a folder is an export, be it a damaged one.

    Traces of an export count, so that taking its manifest or signature away does not turn it into
    a plain store.
    """
    if (folder / SHARDS).is_dir() or (folder / f"{MANIFEST}.sig").exists():
        return True
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return False
    data = read_bounded(path)
    if data is None:
        return False
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "layout" in found and "shards" in found
