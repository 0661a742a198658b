"""Mutated bytes of small valid sources: each reader gives a source or one error, and no more."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers.fixtures import FORMATS
from readers.reading import LIMITS

from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.read import read_format
from pipeline.readers.recognise import Recognised, recognise
from pipeline.readers.source import Crop

# The file of each format that its reader parses.
PARSED = {
    "csv": "list.csv",
    "tsv": "list.tsv",
    "parquet": "list.parquet",
    "idx": "train-images-idx3-ubyte",
    "npz": "set.npz",
    "medmnist": "set.npz",
    "saved_dataset": "train/data-00000-of-00003.arrow",
    "parquet_images": "train-00000-of-00002.parquet",
    "metadata_jsonl": "metadata.jsonl",
    "metadata_csv": "metadata.csv",
    "webdataset": "000000.tar",
    "coco": "annotations/instances.json",
    "voc": "Annotations/0.xml",
}

Mutation = tuple[str, int, int, bytes]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat", "end"]),
        st.integers(0, 1 << 20),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=16),
    ),
    min_size=1,
    max_size=4,
)


def mutate(data: bytes, steps: list[Mutation]) -> bytes:
    for kind, at, size, new in steps:
        at = at % (len(data) + 1)
        if kind == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "cut":
            data = data[:at] + data[at + size :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + size] * 3 + data[at:]
        else:
            data = data[:at]
    return data


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    return {name: write(root / name) for name, (_, write) in FORMATS.items()}


@pytest.mark.timeout(60)  # against a hang
@pytest.mark.parametrize("name", PARSED)
def test_mutated_files_give_a_source_or_one_error(
    name: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    whole = sets[name] if sets[name].is_dir() else sets[name].parent
    copy = shutil.copytree(whole, tmp_path / "set")
    kind = FORMATS[name][0]
    file = copy / PARSED[name]
    data = file.read_bytes()
    path = file if sets[name].is_file() else copy
    before = sorted(tmp_path.rglob("*"))

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(mutations)
    def fuzz(steps: list[Mutation]) -> None:
        file.unlink()  # a file that is mapped into memory is replaced, not rewritten
        file.write_bytes(mutate(data, steps))
        try:
            recognise(str(path))
            source = read_format(Recognised(kind, "", str(path)), LIMITS, Columns())
        except InputError:
            return
        for row in range(0, len(source), 7):
            found = source.contents.fetch(row)
            if isinstance(found, Crop):
                found = found.of
            if isinstance(found, Path):
                assert found.resolve().is_relative_to(copy)
            assert isinstance(source.contents.digest(row), str)
        assert len(set(source.names)) == len(source.names) == len(source.labels)
        assert all(item.file.isprintable() for item in source.quarantine)

    fuzz()
    file.write_bytes(data)
    assert sorted(tmp_path.rglob("*")) == before


@settings(max_examples=40, deadline=None, database=None)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_any_text_in_a_row_is_kept_or_set_aside(path: str, label: str, split: str) -> None:
    from pipeline.readers.manifest import Listed
    from pipeline.readers.rows import Rows
    from pipeline.readers.tables import Row

    rows = Rows("fuzz", LIMITS)
    listed = Listed(rows)
    listed.add(Row(2, {"path": "a.png", "label": "good one"}))
    listed.add(Row(3, {"path": "b.png", "label": "good two"}))
    listed.add(Row(4, {"path": path, "label": label, "split": split}))
    source = listed.source(Path("/nowhere"), LIMITS)
    assert len(source) + len(source.quarantine) in (3, 4)
    assert all(name.isprintable() for name in source.names)
    assert all(item.file.isprintable() for item in source.quarantine)
