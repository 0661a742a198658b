import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers.fixtures import (
    CLASSES,
    digits,
    folder,
    metadata_csv,
    parquet_images,
    pngs,
    saved_dataset,
    table,
)
from readers.reading import LIMITS, content, reasons

from pipeline.data.decoding import Rejected
from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.huggingface import read_huggingface
from pipeline.readers.recognise import recognise
from pipeline.readers.source import Source


def read(path: object, **columns: str) -> Source:
    return read_huggingface(str(path), LIMITS, Columns(**columns))


def write_parquet(path: Path, images: list[bytes | None], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": data, "path": "/etc/passwd"} for data in images]
    pq.write_table(pa.table({"image": cells, **columns}), path)
    return path


def test_all_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [{"bytes": data, "path": None} for data in pngs()[:4]]
    made = datasets.Dataset.from_dict({"img": images, "fine": [1, 0, 1, -1]}, features=features)
    parts = {"train": made, "validation": made.select([0]), "test": made.select([1]), "extra": made}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    source = read(tmp_path / "set")
    assert source.classes == ("cat", "dog")
    assert source.given == ("train",) * 3 + ("validation", "test")
    assert source.labels.tolist() == [1, 0, 1, 1, 0]
    assert reasons(source) == {"train/0000003": "no label", "extra": "unknown split"}


def test_one_dataset_without_a_dictionary(tmp_path: Path) -> None:
    whole = saved_dataset(tmp_path / "set")
    source = read(whole / "train")
    assert content(source) == content(read(whole))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset_dict.json", '{"splits": ["../.."]}', "no list of folder names"),
        ("dataset_dict.json", '{"splits": 7}', "no list of folder names"),
        ("dataset_dict.json", "[" * 100_000, "no readable JSON"),
        ("train/state.json", '{"_data_files": [{"filename": "../../x.arrow"}]}', "is no name of"),
        ("train/state.json", '{"_data_files": [{"filename": "/etc/passwd"}]}', "is no name of"),
        ("train/state.json", '{"_data_files": []}', "names no data files"),
        ("train/state.json", '{"_indices_data_files": [{"filename": "i"}]}', "flatten_indices"),
        ("train/data-00000-of-00003.arrow", "junk", "damaged arrow file"),
    ],
)
def test_a_hostile_saved_dataset_is_one_error(
    tmp_path: Path, name: str, change: str, message: str
) -> None:
    root = saved_dataset(tmp_path / "set")
    (root / name).write_text(change)
    with pytest.raises(InputError, match=message):
        read(root)


def test_a_data_file_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    root = saved_dataset(tmp_path / "set")
    file = root / "train" / "data-00000-of-00003.arrow"
    file.rename(tmp_path / "outside.arrow")
    file.symlink_to(tmp_path / "outside.arrow")
    with pytest.raises(InputError, match="a link leads out"):
        read(root)


def test_parquet_without_metadata_and_with_other_names(tmp_path: Path) -> None:
    labels = [str(label) for label in digits()[1]]
    write_parquet(tmp_path / "data" / "a.parquet", pngs(), kind=labels)
    source = read(tmp_path, label="kind")
    assert source.classes == CLASSES
    with pytest.raises(InputError, match=r"no column 'label' .*; it has: image, kind"):
        read(tmp_path)


def test_bad_cells_are_rejected_one_by_one_and_paths_in_cells_are_not_opened(
    tmp_path: Path,
) -> None:
    path = write_parquet(
        tmp_path / "a.parquet",
        [pngs()[0], None, b"", b"x" * 2_000, pngs()[1]],
        label=["a", "a", "b", "b", "b"],
        origin=["real", "real", "real", "real", "synthetic"],
    )
    source = read_huggingface(str(path), replace(LIMITS, max_file_bytes=1_000))
    assert reasons(source) == {"rows/0000004": "synthetic image"}
    assert source.contents.fetch(0) == pngs()[0]
    rejected = [source.contents.fetch(row) for row in (1, 2, 3)]
    assert [one.reason for one in rejected if isinstance(one, Rejected)] == [
        "no file",
        "empty file",
        "file too large",
    ]
    assert source.contents.digest(1) == "unreadable"


def test_an_image_that_many_rows_share_takes_its_memory_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    image = np.random.default_rng(0).bytes(1_000_000)
    bytes_ = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000), pa.array([image]))
    pq.write_table(pa.table({"image": bytes_, "label": ["a", "b"] * 1_000}), path)
    source = read(path)
    assert source.contents.fetch(1_999) == image
    assert pa.default_memory_pool().max_memory() < 500_000_000  # 2 GB, were it written out


def test_class_names_that_are_numbers_are_not_mixed_up_with_their_codes(tmp_path: Path) -> None:
    root = parquet_images(tmp_path / "set")
    for file in root.glob("*.parquet"):
        rows = pq.read_table(file)
        told = json.loads(rows.schema.metadata[b"huggingface"])
        told["info"]["features"]["label"]["names"] = ["3", "2", "1", "0"]
        pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(told)}), file)
    source = read(root)
    assert source.classes == ("3", "2", "1", "0")
    assert source.labels.tolist() == digits()[1].tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a", "b", "c"], "two classes of the column 'label' have one name"),
        (["a", "b", "c", "\x1b[2J"], "holds the character"),
    ],
)
def test_hostile_class_names_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    root = parquet_images(tmp_path / "set")
    for file in root.glob("*.parquet"):
        rows = pq.read_table(file)
        told = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(told)}), file)
    with pytest.raises(InputError, match=message):
        read(root)


def test_files_that_differ_in_their_columns_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pngs(), label=[0] * 40)
    pq.write_table(pa.table({"pic": pngs(), "label": [1] * 40}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="other columns or classes than the files before"):
        read(tmp_path)


def test_metadata_below_split_folders(tmp_path: Path) -> None:
    metadata_csv(tmp_path / "train")
    metadata_csv(tmp_path / "test")
    source = read(tmp_path)
    assert source.names[0] == "test/images/000.png"
    assert source.given.count("test") == 40
    assert source.given.count(None) == 40


def test_metadata_lines_that_are_no_rows_are_set_aside(tmp_path: Path) -> None:
    columns = table(tmp_path, "file_name")
    good = [
        json.dumps(dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]
    bad = ["{", "[" * 50_000, "7", '{"file_name": ["a"], "label": "0"}', '{"label": "0"}']
    bad += ['{"file_name": "../../etc/passwd", "label": "0"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(good + bad))
    source = read(tmp_path)
    assert len(source) == 40
    assert [item.reason for item in source.quarantine] == ["malformed row"] * 4 + [
        "no path",
        "leads out of the folder",
    ]


def test_an_empty_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Hugging Face dataset; give a folder of save_to_disk"):
        read(tmp_path)


def test_a_dataset_of_the_hub_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    root = parquet_images(tmp_path / "set")
    load = datasets.load_dataset
    asked: list[tuple[object, ...]] = []

    def offline(name: str, revision: str | None, streaming: bool) -> object:
        asked.append((name, revision, streaming))
        return load(
            "parquet", data_files={"train": f"{root}/*.parquet"}, cache_dir=str(tmp_path / "cache")
        )

    monkeypatch.setattr(datasets, "load_dataset", offline)
    source = read("hub:owner/name@v1.0")
    assert asked == [("owner/name", "v1.0", False)]
    assert content(source) == content(read(root))


def test_an_unreachable_hub_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*args: object, **kwargs: object) -> object:
        raise ConnectionError("Couldn't reach the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"ConnectionError: Couldn't .*save_to_disk\(folder\)"):
        read("hub:owner/name")
    for bad in ("hub:name", "hub:../x", "hub:a/b c", "hub:/etc/passwd", "hub:a/..", "hub:a/b\x1b"):
        with pytest.raises(InputError, match="write hub:owner/name"):
            read(bad)


def test_a_table_of_another_kind_in_a_class_folder_means_nothing(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "0" / "metadata.csv").write_text("camera,lens\nx,y\n")
    assert recognise(str(tmp_path)).format == "folder"
