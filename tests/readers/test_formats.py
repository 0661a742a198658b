"""One set of images in every format: every reader says the same of it."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
from readers.fixtures import CLASSES, FORMATS, digits
from readers.reading import LIMITS, content, read

from pipeline.hashing import digest_pixels
from pipeline.params import PrepareParams
from pipeline.readers.read import digest_source, read_source, source_digest
from pipeline.readers.recognise import recognise
from pipeline.readers.source import Contents


def expected() -> set[tuple[str, str]]:
    images, labels = digits()
    return {(str(y), digest_pixels(x)) for x, y in zip(images, labels, strict=True)}


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_yields_the_same_images_and_labels(name: str, tmp_path: Path) -> None:
    kind, write = FORMATS[name]
    path = write(tmp_path / "set")
    assert recognise(str(path)).format == kind
    source = read(path)
    assert source.classes == CLASSES
    assert len(source) == 40
    assert len(set(source.names)) == 40
    assert source.quarantine == ()
    assert content(source) == expected()


@pytest.mark.parametrize("name", FORMATS)
def test_contents_travel_to_a_worker_and_digests_say_what_is_there(
    name: str, tmp_path: Path
) -> None:
    source = read(FORMATS[name][1](tmp_path / "set"))
    assert isinstance(source.contents, Contents)
    source.contents.fetch(0)
    sent = pickle.loads(pickle.dumps(source.contents))
    rows = [3, 39, 0, 21]
    assert [sent.digest(row) for row in rows] == [source.contents.digest(row) for row in rows]
    assert len({source.contents.digest(row) for row in range(40)}) == 40


@pytest.mark.parametrize("name", ["folder", "csv", "saved_dataset", "webdataset", "coco", "npz"])
def test_auto_is_the_named_format_and_its_digest_does_not_depend_on_the_place(
    name: str, tmp_path: Path
) -> None:
    kind, write = FORMATS[name]
    pool = str(tmp_path / "absent")
    auto = PrepareParams(source="auto", path=str(write(tmp_path / "a")), pool_path=pool)
    named = PrepareParams(source=kind, path=str(write(tmp_path / "b")), pool_path=pool)
    assert source_digest(auto) == source_digest(named)
    assert read_source(auto).names == read_source(named).names


@pytest.mark.parametrize("name", ["split_folder", "medmnist"])
def test_splits_that_a_source_brings_are_given(name: str, tmp_path: Path) -> None:
    source = read(FORMATS[name][1](tmp_path / "set"))
    counts = Counter(source.given)
    assert set(counts) == {"train", "validation", "test"}
    assert sum(counts.values()) == 40


@pytest.mark.parametrize("name", ["saved_dataset", "parquet_images"])
def test_a_source_that_is_all_train_decides_no_split(name: str, tmp_path: Path) -> None:
    source = read(FORMATS[name][1](tmp_path / "set"))
    assert set(source.given) == {None}
    assert source.names[0] == "train/0000000"


@pytest.mark.parametrize("name", FORMATS)
def test_limits_of_rows_and_classes_are_kept(name: str, tmp_path: Path) -> None:
    from dataclasses import replace

    from pipeline.errors import InputError

    path = FORMATS[name][1](tmp_path / "set")
    with pytest.raises(InputError, match="max_rows"):
        read(path, replace(LIMITS, max_rows=39))
    with pytest.raises(InputError, match=r"max_classes|2 to 3 are needed"):
        read(path, replace(LIMITS, max_classes=3))


def test_the_digest_follows_labels_splits_and_what_is_set_aside(tmp_path: Path) -> None:
    write = FORMATS["csv"][1]
    path = write(tmp_path / "set")
    seen = {digest_source(read(path))}
    text = path.read_text()
    for changed in (
        text.replace("images/000.png,0", "images/000.png,1"),
        text.replace("path,label", "path,text").replace("text\n", "label\n"),
        text + "images/none.png,\n",
    ):
        path.write_text(changed)
        seen.add(digest_source(read(path)))
    assert len(seen) == 3  # the second change changes nothing
