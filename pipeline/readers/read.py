"""From the params to a source, and to the digest that decides whether it has to be read again."""

import hashlib
import json
from pathlib import Path

from pipeline.params import Columns, PrepareParams
from pipeline.readers.limits import ReadLimits
from pipeline.readers.recognise import Recognised, recognise
from pipeline.readers.source import Source


def read_limits(params: PrepareParams) -> ReadLimits:
    """Return the limits that the params set."""
    return ReadLimits(
        max_rows=params.max_rows,
        max_classes=params.max_classes,
        max_image_pixels=params.max_image_pixels,
        max_file_bytes=params.max_file_bytes,
    )


def read_source(params: PrepareParams) -> Source:
    """Return the source that the params name.

    Raises:
        InputError: nothing is there, it is of no known format, damaged, or without usable images.
    """
    if params.source == "digits":
        from pipeline.readers.digits import read_digits

        return read_digits()
    if params.source == "auto":
        found = recognise(params.path, params.columns)
    else:
        found = Recognised(params.source, "", params.path)
    return read_format(found, read_limits(params), params.columns)


def read_format(found: Recognised, limits: ReadLimits, columns: Columns) -> Source:
    """Return the source of a path whose format is known.

    Raises:
        InputError: see the reader of the format.
    """
    # Each reader is imported when it is needed: some have heavy libraries below them.
    path = Path(found.path)
    match found.format:
        case "folder":
            from pipeline.readers.folder import read_folder

            source = read_folder(path, limits)
        case "manifest":
            from pipeline.readers.manifest import read_manifest

            source = read_manifest(path, limits, columns)
        case "idx":
            from pipeline.readers.idx import read_idx_folder

            source = read_idx_folder(path, limits)
        case "npz":
            from pipeline.readers.npz import read_npz

            source = read_npz(path, limits)
        case "huggingface":
            from pipeline.readers.huggingface import read_huggingface

            source = read_huggingface(found.path, limits, columns)
        case "webdataset":
            from pipeline.readers.webdataset import read_webdataset

            source = read_webdataset(path, limits, columns)
        case "coco":
            from pipeline.readers.coco import read_coco

            source = read_coco(path, limits)
        case "voc":
            from pipeline.readers.voc import read_voc

            source = read_voc(path, limits)
    return source


def read_pool(root: Path, limits: ReadLimits | None = None) -> Source:
    """Return the unlabelled images below `root`, at any depth; see `read_pool_folder`.

    Raises:
        InputError: `root` is no folder, or cannot be listed.
    """
    from pipeline.readers.folder import read_pool_folder

    return read_pool_folder(root, limits or ReadLimits())


def source_digest(params: PrepareParams) -> str:
    """Return the digest of the raw data that the params name, part of the stage's key.

    It covers the labelled images and the pool: classes, names, labels, splits, groups, times,
    masks, texts, what is set aside, and the content of each image. Files above `max_file_bytes`,
    which are quarantined unread, count by their size alone. Where the data lies does not count.

    Raises:
        InputError: as `read_source` and `read_pool`.
    """
    if params.source == "digits":
        import sklearn

        version = sklearn.__version__
    else:
        version = ""
    state = hashlib.sha256(version.encode())
    for source in (read_source(params), read_pool(Path(params.pool_path), read_limits(params))):
        state.update(digest_source(source).encode())
    return state.hexdigest()


def digest_source(source: Source) -> str:
    """Return the digest of a source, row by row, so that it takes no memory to speak of."""
    state, plain = hashlib.sha256(), json.JSONEncoder(separators=(",", ":"))

    def update(*values: object) -> None:
        state.update(plain.encode(values).encode() + b"\n")

    update(len(source), source.classes)
    labels = source.labels.tolist()
    for row, name in enumerate(source.names):
        update(
            name,
            labels[row],
            source.given[row],
            source.groups[row] if source.groups else None,
            source.times[row] if source.times else None,
            source.texts[row] if source.texts else None,
            source.contents.digest(row),
            source.masks.digest(row) if source.masks is not None else None,
        )
    for item in source.quarantine:
        update(item.file, item.reason)
    return state.hexdigest()
