"""The same 40 real images, 10 of each of 4 digits, in every format that is read."""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.images import encode_png
from pipeline.readers.digits import read_digits
from pipeline.readers.source import Pixels

CLASSES = ("0", "1", "2", "3")


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (40, 8, 8, 1) uint8 and (40,) labels."""
    source = read_digits()
    assert isinstance(source.contents, Pixels)
    rows = np.concatenate([np.flatnonzero(source.labels == label)[:10] for label in range(4)])
    return source.contents.images[rows], source.labels[rows]


def pngs() -> list[bytes]:
    return [encode_png(image) for image in digits()[0]]


def write_files(root: Path, name: Callable[[int, int], str]) -> list[str]:
    names = []
    for row, (data, label) in enumerate(zip(pngs(), digits()[1].tolist(), strict=True)):
        names.append(name(row, label))
        path = root / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return names


def folder(root: Path) -> Path:
    write_files(root, lambda row, label: f"{label}/{row:03d}.png")
    return root


def split_folder(root: Path) -> Path:
    word = ("Train", "val", "TEST")
    write_files(root, lambda row, label: f"{word[row % 3]}/{label}/{row:03d}.png")
    return root


def table(root: Path, path_name: str = "path") -> dict[str, list[str]]:
    names = write_files(root, lambda row, label: f"images/{row:03d}.png")
    return {path_name: names, "label": [str(label) for label in digits()[1]]}


def csv_manifest(root: Path, ending: str = ".csv") -> Path:
    delimiter = {".csv": ",", ".tsv": "\t"}[ending]
    columns = table(root)
    lines = [delimiter.join(columns)]
    lines += [delimiter.join(cells) for cells in zip(*columns.values(), strict=True)]
    (root / f"list{ending}").write_text("\n".join(lines) + "\n")
    return root / f"list{ending}"


def tsv_manifest(root: Path) -> Path:
    return csv_manifest(root, ".tsv")


def parquet_manifest(root: Path) -> Path:
    pq.write_table(pa.table(table(root)), root / "list.parquet")
    return root / "list.parquet"


def idx(root: Path) -> Path:
    images, labels = digits()
    write_idx(root, "train", images[:, :, :, 0], labels.tolist())
    return root


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">4I", 0x803, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">2I", 0x801, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + bytes(labels))


def npz(root: Path) -> Path:
    images, labels = digits()
    root.mkdir(exist_ok=True)
    np.savez(root / "set.npz", images=images, labels=labels)
    return root / "set.npz"


def medmnist(root: Path) -> Path:
    images, labels = digits()
    root.mkdir(exist_ok=True)
    parts = {"train": slice(0, None, 2), "val": slice(1, None, 4), "test": slice(3, None, 4)}
    arrays = {f"{name}_images": images[part, :, :, 0] for name, part in parts.items()}
    arrays |= {
        f"{name}_labels": labels[part, None].astype(np.uint8) for name, part in parts.items()
    }
    np.savez_compressed(root / "set.npz", **arrays)
    return root / "set.npz"


def saved_dataset(root: Path) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = {"image": [{"bytes": data, "path": None} for data in pngs()], "label": digits()[1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made}).save_to_disk(root, num_shards={"train": 3})
    return root


def parquet_images(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(CLASSES)},
    }
    schema = pa.schema(
        [("image", kind), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    cells = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(pngs())]
    rows = pa.table({"image": pa.array(cells, kind), "label": digits()[1]}, schema=schema)
    pq.write_table(rows.slice(0, 25), root / "train-00000-of-00002.parquet", row_group_size=7)
    pq.write_table(rows.slice(25), root / "train-00001-of-00002.parquet", row_group_size=7)
    return root


def metadata_folder(root: Path) -> Path:
    columns = table(root, "file_name")
    rows = zip(*columns.values(), strict=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def metadata_csv(root: Path) -> Path:
    columns = table(root, "file_name")
    lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def webdataset(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:06d}.tar", "w") as archive:
            for row in range(shard * 20, shard * 20 + 20):
                add_member(archive, f"{row:05d}.png", pngs()[row])
                add_member(archive, f"{row:05d}.cls", str(digits()[1][row]).encode())
    return root


def coco(root: Path) -> Path:
    """Write 10 canvases of 4 digits each, side by side, and a box around each."""
    images, labels = digits()
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    told: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 5 + i, "name": name} for i, name in enumerate(CLASSES)],
    }
    for canvas in range(10):
        rows = range(canvas * 4, canvas * 4 + 4)
        wide = np.concatenate([images[row, :, :, 0] for row in rows], axis=1)
        Image.fromarray(wide).save(root / "images" / f"{canvas}.png")
        told["images"].append(
            {"id": canvas, "file_name": f"{canvas}.png", "width": 32, "height": 8}
        )
        told["annotations"] += [
            {
                "id": row,
                "image_id": canvas,
                "category_id": 5 + int(labels[row]),
                "bbox": [8 * i, 0, 8, 8],
                "iscrowd": 0,
            }
            for i, row in enumerate(rows)
        ]
    (root / "annotations" / "instances.json").write_text(json.dumps(told))
    return root


def voc(root: Path) -> Path:
    images, labels = digits()
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for canvas in range(10):
        rows = range(canvas * 4, canvas * 4 + 4)
        wide = np.concatenate([images[row, :, :, 0] for row in rows], axis=1)
        Image.fromarray(wide).save(root / "JPEGImages" / f"{canvas}.png")
        things = "".join(
            f"<object><name>{labels[row]}</name><bndbox><xmin>{8 * i + 1}</xmin><ymin>1</ymin>"
            f"<xmax>{8 * i + 8}</xmax><ymax>8</ymax></bndbox></object>"
            for i, row in enumerate(rows)
        )
        (root / "Annotations" / f"{canvas}.xml").write_text(
            f"<annotation><filename>{canvas}.png</filename><size><width>32</width>"
            f"<height>8</height><depth>1</depth></size>{things}</annotation>"
        )
    return root


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "folder": ("folder", folder),
    "split_folder": ("folder", split_folder),
    "csv": ("manifest", csv_manifest),
    "tsv": ("manifest", tsv_manifest),
    "parquet": ("manifest", parquet_manifest),
    "idx": ("idx", idx),
    "npz": ("npz", npz),
    "medmnist": ("npz", medmnist),
    "saved_dataset": ("huggingface", saved_dataset),
    "parquet_images": ("huggingface", parquet_images),
    "metadata_jsonl": ("huggingface", metadata_folder),
    "metadata_csv": ("huggingface", metadata_csv),
    "webdataset": ("webdataset", webdataset),
    "coco": ("coco", coco),
    "voc": ("voc", voc),
}
