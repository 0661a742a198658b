"""The labelled images that a base was trained on, where the run that made it still has them.

Whoever starts from the generator of a run often has the run's images too, and could show them to a
classifier without a generator between. The comparison has an arm for that, `base_images`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import CHANNELS, ImageMode, Images, decode_png
from pipeline.data.limits import most_beside
from pipeline.data.shaping import to_grey, to_square
from pipeline.data.store import INFO, Samples, iterate_tables, make_samples, read_info
from pipeline.data.store_writer import write_store
from pipeline.diffusion.base_sources import find_generator
from pipeline.diffusion.bases import Base
from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.hashing import digest_file, digest_pixels
from pipeline.seeds import numpy_generator

_COLUMNS = ("id", "label", "image")


def images_digest(path: Path) -> str:
    """Return the digest of the images beside a run's generator; empty where there are none.

    Args:
        path: as of `import_run`.

    Raises:
        InputError: there is no generator.
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
    are not at hand: without a base, and of one that has no names, or of which the weights alone
    were given. Of very many a random part is taken, see `limits.most_beside`.

    Args:
        out: folder of the store.
        base: what the generator starts from, if anything.
        path: of the run that it is from, if it is from one; as of `import_run`.
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
    """Return the sample store that a run's generator learned from, where it stands beside it.

    Raises:
        InputError: a link leads out of the run's folder.
    """
    generator = find_generator(path)
    if (generator.parent.name, generator.name) != ("train", "generator"):
        return None
    store = safe_join(generator.parents[1], "prepare/dataset")
    return store if (store / INFO).is_file() else None


def _choose(store: Path, seen: set[str], most: int, seed: int) -> set[str]:
    """Return the ids of at most so many training rows among those that a base saw."""
    ids = sorted(
        identity
        for table in iterate_tables(store, ("train",), columns=("id",))
        for identity in table.column("id").to_pylist()
        if identity in seen
    )
    if len(ids) <= most:
        return set(ids)
    picked = numpy_generator(seed, "pretrain", "base_images").choice(len(ids), most, replace=False)
    return {ids[place] for place in picked}


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
                raise InputError(
                    f"{store}: damaged: the image {identity[:12]} is not what it should be; "
                    "prepare that run again, or give pretrain.path a copy of its `train` alone"
                )
            pixels = _in_mode(pixels, image_mode)
            images.append(to_square(pixels, image_size_px, "pad")[0][None])
            labels.append(label)
    return np.concatenate(images), np.asarray(labels, dtype=np.int64)


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
