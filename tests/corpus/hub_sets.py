"""Hugging Face sets: scripts, pickles, files elsewhere, damaged Arrow and cells."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpus.case import Case, edit_json
from corpus.places import png
from corpus.tables import damaged

SHARD = "train-00001-of-00002.parquet"
ARROW = "train/data-00000-of-00003.arrow"


class Exploding:
    """Makes a file in the folder it is unpickled in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


EXPLODING = pickle.dumps(Exploding())
SCRIPT = b"import os\nos.mkdir('ran')\n"


def cases() -> list[Case]:
    return [*_cells(), *_saved(), *_arrow(), *_parquet(), *_folders()]


def _cells() -> list[Case]:
    cells: dict[str, tuple[dict[str, object] | None, object, str]] = {
        "null": (None, 0, "no file"),
        "no bytes": ({"bytes": None, "path": "/etc/passwd"}, 0, "no file"),
        "bytes of none": ({"bytes": b"", "path": None}, 0, "empty file"),
        "text": ({"bytes": b"text", "path": "a.png"}, 0, "not an image"),
        "a pickle": ({"bytes": EXPLODING, "path": None}, 0, "not an image"),
        "2 MB": ({"bytes": bytes(2 << 20), "path": None}, 0, "file too large"),
        "a cut image": ({"bytes": png(200)[:50], "path": None}, 0, ""),
        "a label of -1": ({"bytes": png(201), "path": None}, -1, "no label"),
        "a label of 99": ({"bytes": png(202), "path": None}, 99, "unknown label"),
        "a label of null": ({"bytes": png(203), "path": None}, None, "no label"),
    }
    found = [
        Case(f"cell of {what}", "image cells", _cell(cell, label), "quarantine", says)
        for what, (cell, label, says) in cells.items()
    ]
    kept = {"bytes": png(204), "path": "../../\x1b[2J.png"}
    return [*found, Case("cell whose path climbs", "image cells", _cell(kept, 0), "kept")]


def _cell(cell: object, label: object) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        table = pq.read_table(root / SHARD)
        row = pa.table(
            {
                "image": pa.array([cell], table.schema.field(0).type),
                "label": pa.array([label], pa.int64()),
            },
            schema=table.schema,
        )
        pq.write_table(pa.concat_tables([table, row]), root / SHARD)
        return f"train/{25 + table.num_rows:07d}"

    return build


def _state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda root: edit_json(root / "train" / "state.json", change)


def _file(name: object) -> Callable[[Path], None]:
    return _state(lambda told: told.update(_data_files=[{"filename": name}]))


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).write_bytes(data)

    return build


def _splits(value: object) -> Callable[[Path], None]:
    return write("dataset_dict.json", json.dumps({"splits": value}).encode())


def _saved() -> list[Case]:
    builds: dict[str, tuple[Callable[[Path], None], str]] = {
        "a file that climbs": (_file("../../outside.png"), "no name of a file"),
        "a file that is absolute": (_file("/etc/passwd"), "no name of a file"),
        "a file that is a number": (_file(7), "no name of a file"),
        "a file that is the folder": (_file("."), "no name of a file"),
        "a file that is missing": (_file("none.arrow"), "none.arrow"),
        "a file that is its own state": (_file("state.json"), "state.json"),
        "no files": (_state(lambda told: told.update(_data_files=[])), "names no data files"),
        "files that are text": (_state(lambda told: told.update(_data_files="x")), "data files"),
        "indices": (
            _state(lambda told: told.update(_indices_data_files=[{"filename": "x"}])),
            "flatten_indices",
        ),
        "a state that is no json": (write("train/state.json", b"{'a': 1}"), "no readable JSON"),
        "a state that is a list": (write("train/state.json", b"[]"), "no JSON object"),
        "a state that is deep": (write("train/state.json", b"[" * 99_999), "no readable JSON"),
        "a state that is a pickle": (write("train/state.json", EXPLODING), "no readable JSON"),
        "a state of a long number": (
            write("train/state.json", b'{"a": ' + b"9" * 9_999 + b"}"),
            "no readable JSON",
        ),
        "a state of 65 MB": (_large_state, "bytes of JSON"),
        "a state that is missing": (
            lambda root: (root / "train/state.json").unlink(),
            "state.json",
        ),
        "a state that is a pipe": (pipe("train/state.json"), "state.json"),
        "a state that is a link out": (link_out("train/state.json"), "leads out"),
        "splits that climb": (_splits([".."]), "no list of folder names"),
        "splits that are absolute": (_splits(["/etc"]), "no list of folder names"),
        "splits that are a mapping": (_splits({"train": 1}), "no list of folder names"),
        "splits of numbers": (_splits([1, 2]), "no list of folder names"),
        "splits that are missing": (_splits(["test"]), "state.json"),
    }
    return [
        Case(f"saved set of {what}", "saved_dataset", build, "error", says)
        for what, (build, says) in builds.items()
    ]


def _large_state(root: Path) -> None:
    with (root / "train" / "state.json").open("ab") as file:
        file.truncate(65 << 20)


def pipe(name: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return build


def link_out(name: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        path = root / name
        elsewhere = root.parent / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)

    return build


def _arrow() -> list[Case]:
    damages: dict[str, Callable[[bytes], bytes]] = {
        "cut in half": lambda data: data[: len(data) // 2],
        "cut in its schema": lambda data: data[:100],
        "nothing": lambda data: b"",
        "a pickle": lambda data: EXPLODING,
        "a message of 2 GiB": lambda data: data[:4] + struct.pack("<i", 0x7FFFFFF0) + data[8:],
        "a message of negative size": lambda data: data[:4] + struct.pack("<i", -9) + data[8:],
        "a schema of zeros": lambda data: data[:8] + bytes(200) + data[208:],
        "a batch of zeros": _zero_batch,
        "a batch of rows without end": _lying_batch,
        "numbers of 65 bits": _odd_number,
    }
    found = [
        Case(f"arrow of {what}", "saved_dataset", damaged(ARROW, change), "error", "data-00000")
        for what, change in damages.items()
    ]
    return [
        *found,
        Case(
            "arrow of a batch of parts below 0",
            "saved_dataset",
            damaged(ARROW, _negative_part),
            "error",
            "14 damaged",
        ),
        Case("arrow that is a pipe", "saved_dataset", pipe(ARROW), "error", "data-00000"),
        Case("arrow that is a link out", "saved_dataset", link_out(ARROW), "error", "leads out"),
        Case("arrow of text as images", "saved_dataset", _text_images, "error", "column of images"),
    ]


def _batch_start(data: bytes) -> int:
    """Return where the message after the schema's begins."""
    return 8 + struct.unpack_from("<i", data, 4)[0]


def _zero_batch(data: bytes) -> bytes:
    at = _batch_start(data) + 8
    return data[:at] + bytes(64) + data[at + 64 :]


def _lying_batch(data: bytes) -> bytes:
    at = _batch_start(data)
    size = struct.unpack_from("<i", data, at + 4)[0]
    body = data[at + 8 : at + 8 + size].replace(struct.pack("<q", 14), struct.pack("<q", 1 << 40))
    return data[: at + 8] + body + data[at + 8 + size :]


def _negative_part(data: bytes) -> bytes:
    """Give the first part of the images' struct, the second field of a batch, a length below 0."""
    at = _batch_start(data)
    field = struct.pack("<qq", 14, 0)
    part = data.index(field, data.index(field, at) + 16)
    return data[:part] + struct.pack("<q", -(1 << 56)) + data[part + 8 :]


def _odd_number(data: bytes) -> bytes:
    bits = struct.pack("<i", 64)
    at = data.index(bits, data.index(bits, 8) + 1)  # the first is no width, but an offset
    return data[:at] + struct.pack("<i", 65) + data[at + 4 :]


def _text_images(root: Path) -> None:
    table = pa.table({"image": ["a", "b"], "label": [0, 1]})
    (root / ARROW).unlink()
    with pa.OSFile(str(root / ARROW), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def _parquet() -> list[Case]:
    def metadata(text: bytes) -> Callable[[Path], None]:
        def build(root: Path) -> None:
            for path in root.glob("*.parquet"):
                table = pq.read_table(path)
                pq.write_table(table.replace_schema_metadata({b"huggingface": text}), path)

        return build

    def names(*labels: str) -> Callable[[Path], None]:
        kinds = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": labels}}
        return metadata(json.dumps({"info": {"features": kinds}}).encode())

    builds: dict[str, tuple[Callable[[Path], None], str]] = {
        "metadata that is no json": (metadata(b"{'"), "metadata is damaged"),
        "metadata that is deep": (metadata(b"[" * 99_999), "metadata is damaged"),
        "metadata that is a list": (metadata(b"[]"), "metadata is damaged"),
        "metadata of a long number": (metadata(b"9" * 9_999), "metadata is damaged"),
        "two classes of one name": (names("a", "a", "b"), "one name"),
        "a class name with escape": (names("\x1b[2J", "a", "b", "c"), "class name"),
        "a class name that turns": (names("a\u202e", "b", "c", "d"), "class name"),
        "other classes in a file": (_other_classes, "other columns or classes"),
        "a cut file": (damaged(SHARD, lambda data: data[:-9]), SHARD),
        "a file of pages of zeros": (
            damaged(SHARD, lambda data: b"PAR1" + bytes(2_000) + data[2_004:]),
            SHARD,
        ),
        "a pickle": (damaged(SHARD, lambda data: EXPLODING), SHARD),
    }
    found = [
        Case(f"image parquet of {what}", "parquet_images", build, "error", says)
        for what, (build, says) in builds.items()
    ]
    pipe = Case("image parquet that is a pipe", "parquet_images", _add_pipe, "kept", rows=0)
    return [*found, pipe]


def _other_classes(root: Path) -> None:
    table = pq.read_table(root / SHARD)
    pq.write_table(table.replace_schema_metadata({}), root / SHARD)


def _add_pipe(root: Path) -> None:
    os.mkfifo(root / "train-00002-of-00002.parquet")


def _folders() -> list[Case]:
    def beside(name: str, data: bytes) -> Callable[[Path], None]:
        return lambda root: write_file(root / name, data)

    builds = {
        "loading script": ("saved_dataset", beside("saved_dataset.py", SCRIPT)),
        "loading script of its folder's name": ("parquet_images", beside("set.py", SCRIPT)),
        "init file": ("metadata_csv", beside("__init__.py", SCRIPT)),
        "pickle": ("saved_dataset", beside("dataset.pkl", EXPLODING)),
        "cached pickle": ("saved_dataset", beside("train/cache.pkl", EXPLODING)),
        "torch file": ("folder", beside("0/data.pt", EXPLODING)),
        "setup file": ("webdataset", beside("setup.py", SCRIPT)),
        "environment file": ("csv", beside(".env", b"SECRET=1")),
    }
    return [
        Case(f"{what} beside the data", base, build, "kept", rows=0)
        for what, (base, build) in builds.items()
    ]


def write_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
