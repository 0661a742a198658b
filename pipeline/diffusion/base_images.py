"""The labelled images that a base was trained on, where the whole run that made it is given.

Whoever starts from the generator of a run often has the run's images too, and could show them to a
classifier without a generator between. The comparison has an arm for that, `base_images`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.images import CHANNELS, ImageMode, Images, decode_png
from pipeline.data.limits import most_beside
from pipeline.data.shaping import to_grey, to_square
from pipeline.data.store import (
    INFO,
    Samples,
    iterate_tables,
    make_samples,
    read_info,
    row_digest,
)
from pipeline.data.store_writer import write_store
from pipeline.diffusion.base_sources import find_generator
from pipeline.diffusion.bases import Base
from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.hashing import digest_file, digest_lines, digest_pixels
from pipeline.seeds import numpy_generator

_ROW = ("split", "label", "origin", "id")
_COLUMNS = ("id", "label", "image")
_INFO_BYTES = 64 << 20
_SHARD_BYTES = 4 << 30  # unpacked


def images_digest(path: Path) -> str:
    """Return the digest of a run's images; empty where `path` is a part of a run, or has none.

    Args:
        path: as of `import_run`.

    Raises:
        InputError: there is no generator, or a link leads out of the run.
    """
    store = _store_of(path)
    return digest_file(store / INFO) if store is not None else ""


def write_base_images(
    out: Path,
    base: Base | None,
    path: Path | None,
    image_size_px: int,
    image_mode: ImageMode,
    seed: int,
) -> int:
    """Write the labelled images that a base saw as a sample store, and return how many there are.

    They have our size and mode, and the names of the base's classes. The store is empty where they
    are not at hand: without a base, where it is not known what it saw, and where a part of the run
    is given, such as its `train`. Of very many a random part is taken, see `limits.most_beside`.

    Args:
        out: folder of the store.
        base: what the generator starts from, if anything.
        path: folder of the run that it is from, if it is from one.
        image_size_px: side of our images.
        image_mode: of our images.
        seed: of the choice among too many.

    Raises:
        InputError: the run's images are damaged.
    """
    store = _store_of(path) if path is not None else None
    classes: tuple[str, ...] = ()
    images, labels = _none(image_size_px, image_mode), np.zeros(0, dtype=np.int64)
    if base is not None and base.training_ids is not None and store is not None:
        classes = read_info(store).classes
        most = most_beside(image_size_px, image_mode)
        chosen = _choose(store, set(base.training_ids), most, seed)
        images, labels = _read(store, chosen, image_size_px, image_mode)
    rows = _once(make_samples(images, labels, "train", "real"))
    write_store(out, rows, classes, image_size_px, image_mode)
    return len(rows)


def _store_of(path: Path) -> Path | None:
    """Return the sample store of a run's folder; None where `path` is a part of one.

    Raises:
        InputError: there is no generator; the store is damaged, or a link leads out of the run.
    """
    if find_generator(path) != path / "train" / "generator":
        return None
    store = safe_join(path, "prepare/dataset")
    if not (store / INFO).is_file():
        return None
    size = safe_join(store, INFO).stat().st_size
    if size > _INFO_BYTES:
        raise InputError(f"{store / INFO}: {size >> 20} MiB, more than a dataset.json ever has")
    return store


def _choose(store: Path, seen: set[str], most: int, seed: int) -> set[str]:
    """Return the ids of at most so many training rows among those that a base saw.

    Raises:
        InputError: the rows are not those that dataset.json has the digest of.
    """
    for shard in sorted((store / "data").glob("*.parquet")):
        _require_size(shard)
    ids, digests = [], []
    for table in iterate_tables(store, columns=_ROW):
        for split, label, origin, identity in zip(
            *(table.column(name).to_pylist() for name in _ROW), strict=True
        ):
            digests.append(row_digest(split, label, origin, identity))
            if split == "train" and isinstance(identity, str) and identity in seen:
                ids.append(identity)
    if digest_lines(digests) != read_info(store).digest:
        raise _damaged(store, f"its rows are not those of {INFO}")
    if len(ids) <= most:
        return set(ids)
    ids.sort()
    picked = numpy_generator(seed, "pretrain", "base_images").choice(len(ids), most, replace=False)
    return {ids[place] for place in picked}


def _require_size(shard: Path) -> None:
    try:
        facts = pq.read_metadata(shard)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{shard}: not readable as Parquet ({error})") from None
    size = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    if size > _SHARD_BYTES:
        raise InputError(f"{shard}: {size >> 30} GiB unpacked, more than a shard ever has")


def _read(
    store: Path, chosen: set[str], image_size_px: int, image_mode: ImageMode
) -> tuple[Images, npt.NDArray[np.int64]]:
    info = read_info(store)
    images, labels = [_none(image_size_px, image_mode)], []
    for table in iterate_tables(store, ("train",), columns=_COLUMNS):
        rows = (table.column(name).to_pylist() for name in _COLUMNS)
        for identity, label, image in zip(*rows, strict=True):
            if identity not in chosen:
                continue
            pixels = _decoded(image, info.image_mode)
            # Ids are how a test image among them is found.
            if (
                pixels is None
                or digest_pixels(pixels) != identity
                or label not in range(len(info.classes))
            ):
                raise _damaged(store, f"the image {identity[:12]} is not what it should be")
            pixels = _in_mode(pixels, image_mode)
            images.append(to_square(pixels, image_size_px, "pad")[0][None])
            labels.append(label)
    return np.concatenate(images), np.asarray(labels, dtype=np.int64)


def _damaged(store: Path, what: str) -> InputError:
    return InputError(
        f"{store}: damaged: {what}; prepare that run again, or set pretrain.path to its `train`, "
        "which leaves its images out"
    )


def _decoded(image: Any, mode: ImageMode) -> Images | None:
    try:
        return decode_png(image["bytes"], mode)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, Image.DecompressionBombError):
        return None


def _in_mode(pixels: Images, mode: ImageMode) -> Images:
    if pixels.shape[-1] == CHANNELS[mode]:
        return pixels
    return to_grey(pixels) if mode == "L" else np.repeat(pixels, CHANNELS[mode], axis=-1)


def _once(rows: Samples) -> Samples:
    """Return the rows sorted by id, each image once: smaller, two may have become one."""
    _, first = np.unique(np.asarray(rows.ids, dtype=object), return_index=True)
    return rows.take(first) if len(rows) else rows


def _none(image_size_px: int, image_mode: ImageMode) -> Images:
    return np.zeros((0, image_size_px, image_size_px, CHANNELS[image_mode]), dtype=np.uint8)
