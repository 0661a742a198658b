"""IDX folders: MNIST's four files, and those of its kin."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.errors import InputError
from pipeline.readers.class_names import CLASSES_FILE, read_class_names
from pipeline.readers.idx_files import find_idx, read_idx
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import entries, stays_inside
from pipeline.readers.rows import check_classes
from pipeline.readers.source import Pixels, Source


def recognise_idx(path: Path) -> str | None:
    """Return why `path` looks like a folder of IDX files, or None."""
    found = find_idx(path, "train", "images", 3)
    return f"the IDX file {found.name}" if found is not None else None


def read_idx_folder(folder: Path, limits: ReadLimits) -> Source:
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
        _check_size(image_path, images, pixels, limits)
        pixels.append(images[:, :, :, None])
        labels.append(marks)
        names += [f"{prefix}/{i:05d}" for i in range(len(images))]
        given += ["test" if prefix == "t10k" else None] * len(images)
    if len(names) > limits.max_rows:
        raise InputError(
            f"{folder}: {len(names)} images; at most {limits.max_rows} are read (prepare.max_rows)"
        )
    classes, indices = _name_labels(folder, np.concatenate(labels))
    check_classes(str(folder), len(names), classes, ())
    if len(classes) > limits.max_classes:
        raise InputError(
            f"{folder}: {len(classes)} classes; at most {limits.max_classes} are read "
            "(prepare.max_classes)"
        )
    return Source(
        classes=classes,
        names=tuple(names),
        labels=indices,
        given=tuple(given),
        contents=Pixels(np.concatenate(pixels)),
    )


def _check_size(path: Path, images: Images, before: list[Images], limits: ReadLimits) -> None:
    if images[0].size > limits.max_image_pixels:
        raise InputError(
            f"{path}: images of {images[0].size} pixels; at most {limits.max_image_pixels} "
            "are read (prepare.max_image_pixels)"
        )
    if before and before[0].shape[1:3] != images.shape[1:]:
        raise InputError(f"{path}: images of another size than the training images")
    if sum(part.size for part in before) + images.size > limits.max_array_bytes:
        raise InputError(f"{path}: more than {limits.max_array_bytes} bytes of images in all")


def _idx_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    entries(folder)
    found: dict[str, tuple[Path, Path]] = {}
    for prefix in ("train", "t10k"):
        images = find_idx(folder, prefix, "images", 3)
        labels = find_idx(folder, prefix, "labels", 1)
        for path in (images, labels):
            if path is not None and not stays_inside(folder, path.name):
                raise InputError(f"{path}: a link leads out of the folder; put the file there")
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
    names = read_class_names(folder)
    if names is None:
        values, indices = np.unique(labels, return_inverse=True)
        return tuple(str(value) for value in values), indices.astype(np.int64)
    if labels.max() >= len(names):
        row = int(np.argmax(labels >= len(names)))
        raise InputError(
            f"{folder / CLASSES_FILE}: names {len(names)} classes, and row {row} has the label "
            f"{labels[row]}; name every class, one a line, or remove the file"
        )
    return names, labels.astype(np.int64)
