"""Three sources of labelled images behind one interface: digits, a folder, IDX files; and a pool.

A source is read once into a `Source`: names, labels, and either pixels or files still to decode.
Raw data is never written to, and nothing outside its folder is read.
"""

import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import EXTENSIONS, UNREADABLE
from pipeline.data.idx import find_idx, read_idx
from pipeline.data.images import Images
from pipeline.data.listing import (
    POOL,
    Quarantined,
    check_class_name,
    entries,
    list_class,
    list_pool,
    list_root,
    relative,
)
from pipeline.data.store import UNLABELLED
from pipeline.errors import InputError
from pipeline.hashing import digest_bytes, digest_file, digest_json
from pipeline.params import PrepareParams

DIGITS_SCALED = "values 0 to 16 scaled to 0 to 255"

_CLASSES_FILE = "classes.txt"
_MAX_CLASSES_FILE_BYTES = 1 << 18


@dataclass(frozen=True)
class Source:
    """What a source yields: N items, as pixels or as files.

    Attributes:
        classes: class names; a label is an index into them. A pool has none.
        names: name of each item, relative to the source.
        labels: (N,) int64, `UNLABELLED` in a pool.
        given: split of each item where the source itself decides it, else None.
        pixels: (N, H, W, 1) uint8, or None where `files` are to be decoded.
        files: path of each item, or empty.
        quarantine: what was set aside while listing.
        conversions: what was converted while reading -> number of items.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    given: tuple[str | None, ...]
    pixels: Images | None
    files: tuple[Path, ...]
    quarantine: tuple[Quarantined, ...]
    conversions: dict[str, int]


def read_source(params: PrepareParams) -> Source:
    """Return the source that the params name.

    Raises:
        InputError: see `read_folder` and `read_idx_folder`.
    """
    if params.source == "digits":
        return read_digits()
    if params.source == "idx":
        return read_idx_folder(Path(params.path), params.max_image_pixels)
    return read_folder(Path(params.path))


def source_digest(params: PrepareParams) -> str:
    """Return the digest of the raw data that the params name, part of the stage's key.

    It covers the labelled images and the pool. Files above `max_file_bytes`, which are quarantined
    unread, count by their size alone.

    Raises:
        InputError: as `read_source` and `read_pool`.
    """
    pool = read_pool(Path(params.pool_path))
    return digest_json([_labelled_digest(params), _files_digest(pool, params.max_file_bytes)])


def _labelled_digest(params: PrepareParams) -> str:
    if params.source == "digits":
        import sklearn

        pixels, labels = _load_digits()
        return digest_json([sklearn.__version__, digest_bytes(pixels.tobytes(), labels.tobytes())])
    folder = Path(params.path)
    if params.source == "idx":
        files = [path for pair in _idx_files(folder).values() for path in pair]
        classes = folder / _CLASSES_FILE
        files += [classes] if classes.is_file() else []
        try:
            return digest_json({path.name: digest_file(path) for path in files})
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); mend its permissions"
            ) from None
    return _files_digest(read_folder(folder), params.max_file_bytes)


def _files_digest(source: Source, max_bytes: int) -> str:
    contents = {
        name: _content(path, max_bytes)
        for name, path in zip(source.names, source.files, strict=True)
    }
    aside = [[item.file, item.reason] for item in source.quarantine]
    return digest_json([list(source.classes), contents, aside])


def read_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits: real, grey, 8 x 8 px, 10 classes.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998. The
    values 0 to 16 become round(255 v / 16).
    """
    values, labels = _load_digits()
    pixels = ((values.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, :, :, None]
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        names=tuple(f"digits/{i:05d}" for i in range(len(pixels))),
        labels=labels,
        given=(None,) * len(pixels),
        pixels=pixels,
        files=(),
        quarantine=(),
        conversions={DIGITS_SCALED: len(pixels)},
    )


def read_folder(root: Path) -> Source:
    """Return the images below `root`, one sub-folder a class, sorted by name.

    Sub-folders of a class are read too. Hidden files, and a README beside the classes, are
    ignored; whatever else is no image file or leads out of `root` is quarantined.

    Raises:
        InputError: `root` is missing, has no class folders, fewer than 2 or more than 1,000; a
            class folder holds no image file, or its name cannot be shown safely.
    """
    folders, quarantine = list_root(root)
    names: list[str] = []
    labels: list[int] = []
    files: list[Path] = []
    for label, folder in enumerate(folders):
        found, aside = list_class(root, folder)
        quarantine += aside
        if not found:
            raise InputError(
                f"{folder}: the class folder holds no image file; add images "
                f"({', '.join(sorted(EXTENSIONS))}) or remove the folder"
            )
        names += [relative(root, path) for path in found]
        labels += [label] * len(found)
        files += found
    return Source(
        classes=tuple(folder.name for folder in folders),
        names=tuple(names),
        labels=np.asarray(labels, dtype=np.int64),
        given=(None,) * len(names),
        pixels=None,
        files=tuple(files),
        quarantine=tuple(quarantine),
        conversions={},
    )


def read_pool(root: Path) -> Source:
    """Return the unlabelled images below `root`, at any depth, sorted; names begin with `pool/`.

    Hidden files and README notes are ignored; whatever else is no image file or leads out of
    `root` is quarantined. A missing or empty folder is a source without items.

    Raises:
        InputError: `root` is no folder, or cannot be listed.
    """
    files, quarantine = list_pool(root)
    return Source(
        classes=(),
        names=tuple(f"{POOL}/{relative(root, path)}" for path in files),
        labels=np.full(len(files), UNLABELLED, dtype=np.int64),
        given=(POOL,) * len(files),
        pixels=None,
        files=tuple(files),
        quarantine=tuple(quarantine),
        conversions={},
    )


def read_idx_folder(folder: Path, max_image_pixels: int) -> Source:
    """Return the images of MNIST's four IDX files; the t10k rows are given the split `test`.

    The lines of a file `classes.txt` beside them name the classes; without it the labels that
    occur do.

    Raises:
        InputError: a file is missing or damaged, two files disagree, or a label has no name.
    """
    pixels: list[Images] = []
    labels: list[npt.NDArray[np.uint8]] = []
    names: list[str] = []
    given: list[str | None] = []
    for prefix, (image_path, label_path) in _idx_files(folder).items():
        images, marks = read_idx(image_path, 3), read_idx(label_path, 1)
        if len(images) != len(marks):
            raise InputError(
                f"{image_path} holds {len(images)} images and {label_path} {len(marks)} labels; "
                "they must come from the same data set"
            )
        if images[0].size > max_image_pixels:
            raise InputError(
                f"{image_path}: images of {images[0].size} pixels; at most {max_image_pixels} "
                "are read (prepare.max_image_pixels)"
            )
        if pixels and pixels[0].shape[1:3] != images.shape[1:]:
            raise InputError(f"{image_path}: images of another size than the training images")
        pixels.append(images[:, :, :, None])
        labels.append(marks)
        names += [f"{prefix}/{i:05d}" for i in range(len(images))]
        given += ["test" if prefix == "t10k" else None] * len(images)
    classes, indices = _name_labels(folder, np.concatenate(labels))
    return Source(
        classes=classes,
        names=tuple(names),
        labels=indices,
        given=tuple(given),
        pixels=np.concatenate(pixels),
        files=(),
        quarantine=(),
        conversions={},
    )


def _load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    # Imported here: scikit-learn takes a second to load, and only this source needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def _content(path: Path, max_bytes: int) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        return f"{status.st_size} bytes" if status.st_size > max_bytes else digest_file(path)
    except OSError:
        return UNREADABLE


def _idx_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    entries(folder)
    found: dict[str, tuple[Path, Path]] = {}
    for prefix in ("train", "t10k"):
        images = find_idx(folder, prefix, "images", 3)
        labels = find_idx(folder, prefix, "labels", 1)
        if images and labels:
            found[prefix] = (images, labels)
        elif prefix == "train" or images or labels:
            missing = "labels-idx1" if images else "images-idx3"
            raise InputError(
                f"{folder}: has no file {prefix}-{missing}-ubyte (or .gz); the source idx needs "
                "train-images-idx3-ubyte and train-labels-idx1-ubyte, and takes t10k-images-idx3-"
                "ubyte and t10k-labels-idx1-ubyte as the test split"
            )
    return found


def _name_labels(
    folder: Path, labels: npt.NDArray[np.uint8]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    path = folder / _CLASSES_FILE
    if not path.is_file():
        values, indices = np.unique(labels, return_inverse=True)
        return tuple(str(value) for value in values), indices.astype(np.int64)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CLASSES_FILE_BYTES + 1)
        lines = data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from None
    names = [line.removesuffix("\r") for line in lines if line.strip()]
    if len(data) > _MAX_CLASSES_FILE_BYTES or len(set(names)) != len(names):
        raise InputError(f"{path}: write one class name a line, each once")
    for name in names:
        check_class_name(name, str(path))
    if labels.max() >= len(names):
        row = int(np.argmax(labels >= len(names)))
        raise InputError(
            f"{path}: names {len(names)} classes, and row {row} has the label {labels[row]}; "
            "name every class, one a line, or remove the file"
        )
    return tuple(names), labels.astype(np.int64)
