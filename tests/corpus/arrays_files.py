"""npz and IDX: pickled objects, headers that lie, bombs, members that climb."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from corpus.case import Case, digit, good_pixels
from corpus.hub_sets import EXPLODING, SCRIPT, Exploding, link_out, pipe, write
from corpus.tables import damaged

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def cases() -> list[Case]:
    return [*_rows(), *_npz(), *_idx()]


def npy(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """Return the bytes of an .npy file with any header."""
    text = header.encode() if isinstance(header, str) else header
    layout = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(layout, len(text)) + text + data


def head(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _rows() -> list[Case]:
    def add(label: str) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            path = root / "set.npz"
            with np.load(path) as old:
                images, labels = old["images"], old["labels"].astype(str)
            row = len(images)
            more = digit(400 + row)[None, :, :, None]
            np.savez(path, images=np.concatenate([images, more]), labels=np.append(labels, label))
            return f"{row:07d}"

        return build

    labels = {
        "blank": ("  ", "no label"),
        "escape": ("\x1b[2J", "label that cannot"),
        "line break": ("a\nb", "label that cannot"),
        "right-to-left override": ("a\u202eb", "label that cannot"),
        "300 characters": ("x" * 300, "label that cannot"),
    }
    return [
        Case(f"npz label of {what}", "npz rows", add(label), "quarantine", says)
        for what, (label, says) in labels.items()
    ]


Members = dict[str, bytes]


def _archive(members: Members, packed: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / "set.npz").unlink()
        with zipfile.ZipFile(root / "set.npz", "w", packed) as out:
            for name, data in members.items():
                out.writestr(name, data)

    return build


def _npz() -> list[Case]:
    pixels = good_pixels()
    good = array(pixels)
    labels = array(np.arange(40) % 4)
    objects = io.BytesIO()
    np.save(objects, np.asarray([Exploding()] * 40, dtype=object), allow_pickle=True)
    lies: dict[str, tuple[Members, str]] = {
        "pickled images": ({"images.npy": objects.getvalue(), "labels.npy": labels}, "unpickled"),
        "pickled labels": ({"images.npy": good, "labels.npy": objects.getvalue()}, "unpickled"),
        "a plain pickle": ({"images.npy": EXPLODING, "labels.npy": labels}, "set.npz"),
        "a pickle behind a header": (
            {"images.npy": npy(head("(40,)", "|O"), EXPLODING), "labels.npy": labels},
            "unpickled",
        ),
        "a shape of 2^60": (
            {"images.npy": npy(head(f"({1 << 60}, 8, 8)")), "labels.npy": labels},
            "at most 1000",
        ),
        "a picture of 2^40": (
            {"images.npy": npy(head(f"(2, {1 << 20}, {1 << 20})")), "labels.npy": labels},
            "pixels",
        ),
        "a shape of -1": (
            {"images.npy": npy(head("(-1, 8, 8)")), "labels.npy": labels},
            "damaged header",
        ),
        "a shape of 0": ({"images.npy": npy(head("(0, 8, 8)")), "labels.npy": labels}, "shape"),
        "a shape of truth": (
            {"images.npy": npy(head("(True, 8, 8)")), "labels.npy": labels},
            "set",
        ),
        "a shape of 40 sides": (
            {"images.npy": npy(head("(" + "1, " * 40 + ")")), "labels.npy": labels},
            "shape",
        ),
        "a shape that is text": ({"images.npy": npy(head("'x'")), "labels.npy": labels}, "set.npz"),
        "code in its header": (
            {"images.npy": npy(head("__import__('os').mkdir('ran')")), "labels.npy": labels},
            "set.npz",
        ),
        "a deep header": ({"images.npy": npy("(" * 9_000), "labels.npy": labels}, "set.npz"),
        "a long header": (
            {"images.npy": npy(" " * 60_000 + head("(40, 8, 8)")), "labels.npy": labels},
            "set.npz",
        ),
        "a header of 4 GiB": (
            {"images.npy": b"\x93NUMPY\x02\x00\xf0\xff\xff\xff", "labels.npy": labels},
            "set.npz",
        ),
        "version 9": (
            {"images.npy": npy(head("(40, 8, 8)"), b"", (9, 0)), "labels.npy": labels},
            "version",
        ),
        "dates": (
            {"images.npy": npy(head("(40, 8, 8)", "<M8[s]"), bytes(20_480)), "labels.npy": labels},
            "type",
        ),
        "complex numbers": (
            {"images.npy": array(pixels.astype(np.complex64)), "labels.npy": labels},
            "type",
        ),
        "records": (
            {"images.npy": array(np.zeros(40, [("a", "u1")])), "labels.npy": labels},
            "type",
        ),
        "NaN": (
            {"images.npy": array(np.full((40, 8, 8), np.nan)), "labels.npy": labels},
            "nan",
        ),
        "infinity": (
            {"images.npy": array(np.full((40, 8, 8), np.inf)), "labels.npy": labels},
            "inf",
        ),
        "numbers below 0": (
            {"images.npy": array(pixels.astype(np.int16) - 300), "labels.npy": labels},
            "from -300",
        ),
        "numbers above 255": (
            {"images.npy": array(pixels.astype(np.int32) * 99), "labels.npy": labels},
            "255",
        ),
        "volumes": (
            {"images.npy": array(np.zeros((4, 8, 8, 8, 1))), "labels.npy": labels},
            "shape",
        ),
        "too few labels": ({"images.npy": good, "labels.npy": array(np.arange(9))}, "9 labels"),
        "labels of floats": (
            {"images.npy": good, "labels.npy": array(np.ones(40))},
            "labels of type",
        ),
        "several labels": (
            {"images.npy": good, "labels.npy": array(np.ones((40, 14), np.uint8))},
            "several",
        ),
        "labels below 0": ({"images.npy": good, "labels.npy": array(np.full(40, -1))}, "no label"),
        "no labels": ({"images.npy": good}, "no key labels"),
        "no images": ({"labels.npy": labels}, "none of the keys"),
        "no members": ({}, "none of the keys"),
        "2000 members": ({f"{i}.npy": b"" for i in range(2_000)}, "2000 members"),
        "members that climb": (
            {"../../images.npy": good, "/labels.npy": labels},
            "none of the keys",
        ),
        "class names with escape": (
            {
                "images.npy": good,
                "labels.npy": labels,
                "classes.npy": array(np.array(["\x1b", "b"])),
            },
            "class name",
        ),
        "class names pickled": (
            {"images.npy": good, "labels.npy": labels, "classes.npy": objects.getvalue()},
            "unpickled",
        ),
        "splits of numbers": (
            {"images.npy": good, "labels.npy": labels, "splits.npy": array(np.ones(40))},
            "list of text",
        ),
        "short splits": (
            {"images.npy": good, "labels.npy": labels, "splits.npy": array(np.array(["a"]))},
            "1 splits",
        ),
        "less data than its shape": (
            {"images.npy": npy(head("(900, 8, 8)"), bytes(64)), "labels.npy": labels},
            "do not agree",
        ),
        "a bomb": (
            {"images.npy": npy(head("(40, 8, 8)"), bytes(16 << 20)), "labels.npy": labels},
            "do not agree",
        ),
        "a bomb as text": (
            {"images.npy": good, "labels.npy": npy(head("(1,)", "<U4000000"), bytes(16 << 20))},
            "labels",
        ),
    }
    found = [
        Case(f"npz of {what}", "npz", _archive(members), "error", says)
        for what, (members, says) in lies.items()
    ]
    damages: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda data: data[: len(data) // 2],
        "without its directory": lambda data: data[:-80],
        "nothing": lambda data: b"",
        "no zip": lambda data: b"no zip at all",
        "a bare npy": lambda data: good,
        "a bare pickle": lambda data: EXPLODING,
        "flipped bits": lambda data: data[:400] + bytes([data[400] ^ 255]) + data[401:],
        "packed in an unknown way": lambda data: _directory(data, 10, 99),
        "sealed": lambda data: _directory(data, 8, 1),
    }
    found += [
        Case(f"npz that is {what}", "npz", damaged("set.npz", change), "error", "set.npz")
        for what, change in damages.items()
    ]
    twice = Case("npz of two members of one name", "npz", _two_of_a_name, "error", "one name")
    climbing = {"images.npy": good, "labels.npy": array(_good_labels()), "../../up.npy": SCRIPT}
    return [
        *found,
        twice,
        Case("npz with a member that climbs", "npz", _archive(climbing), "kept", rows=0),
        Case("npz that is a pipe", "npz", pipe("set.npz"), "error", "set.npz"),
    ]


def _good_labels() -> np.ndarray:
    from readers.fixtures import digits

    return digits()[1]


def _directory(data: bytes, offset: int, value: int) -> bytes:
    """Return a zip with one byte of its directory's entries changed."""
    changed = bytearray(data)
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + offset] = value
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def _two_of_a_name(root: Path) -> None:
    data = (root / "set.npz").read_bytes()
    (root / "set.npz").write_bytes(data.replace(b"labels.npy", b"images.npy"))


def _idx() -> list[Case]:
    pixels = good_pixels().tobytes()

    def images(*numbers: int, magic: int = 0x803, data: bytes = pixels) -> Callable[[Path], None]:
        return write(IMAGES, struct.pack(f">{1 + len(numbers)}I", magic, *numbers) + data)

    builds: dict[str, tuple[Callable[[Path], None], str]] = {
        "another magic": (images(40, 8, 8, magic=0x1234), IMAGES),
        "floats": (images(40, 8, 8, magic=0xD03), IMAGES),
        "one dimension": (images(2_560, magic=0x801), IMAGES),
        "4 billion images": (images(0xFFFFFFFF, 8, 8), "declares"),
        "images of 4 billion": (images(40, 0xFFFFFFFF, 0xFFFFFFFF), "declares"),
        "no images": (images(0, 8, 8), "declares"),
        "images of 0": (images(40, 0, 8), "declares"),
        "more images than data": (images(41, 8, 8), "holds only"),
        "less images than data": (images(39, 8, 8), "holds more"),
        "other images than labels": (images(20, 16, 8), "20 images"),
        "a cut header": (write(IMAGES, b"\0\0\x08\x03\0\0"), "header"),
        "nothing": (write(IMAGES, b""), IMAGES),
        "labels as images": (lambda root: _copy(root, LABELS, IMAGES), IMAGES),
        "a gzip bomb": (_bomb, "holds more"),
        "a cut gzip": (_packed(lambda data: data[:60]), "gzip"),
        "a gzip that is none": (_packed(lambda data: b"not gzip"), "gzip"),
        "a gzip of a wrong sum": (_packed(lambda data: data[:-8] + bytes(8)), "gzip"),
        "images that are a pipe": (pipe(IMAGES), "train-images-idx3"),
        "images that are a link out": (link_out(IMAGES), "leads out"),
        "labels that are missing": (lambda root: (root / LABELS).unlink(), "train-labels"),
        "a test set of one file": (
            lambda root: _copy(root, IMAGES, "t10k-images-idx3-ubyte"),
            "t10k",
        ),
        "too few class names": (write("classes.txt", b"a\nb\n"), "names 2 classes"),
        "class names twice": (write("classes.txt", b"a\na\nb\nc\n"), "each once"),
        "class names with escape": (write("classes.txt", b"a\nb\nc\n\x1b[2J\n"), "class name"),
        "class names in UTF-16": (write("classes.txt", "a\nb\n".encode("utf-16")), "UTF-8"),
        "class names of 1 MB": (write("classes.txt", b"x\n" * 500_000), "classes.txt"),
    }
    return [
        Case(f"idx of {what}", "idx", build, "error", says)
        for what, (build, says) in builds.items()
    ]


def _copy(root: Path, first: str, second: str) -> None:
    (root / second).write_bytes((root / first).read_bytes())


def _packed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        data = gzip.compress((root / IMAGES).read_bytes(), mtime=0)
        (root / IMAGES).unlink()
        (root / f"{IMAGES}.gz").write_bytes(change(data))

    return build


def _bomb(root: Path) -> None:
    data = (root / IMAGES).read_bytes()
    (root / IMAGES).unlink()
    (root / f"{IMAGES}.gz").write_bytes(gzip.compress(data + bytes(16 << 20), 9, mtime=0))
