"""Whatever is changed, added, taken away or forged in an export is found, and named in one line."""

import io
import json
import os
import shutil
import tarfile

import pyarrow.parquet as pq
import pytest
from export_stores import parts, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.images import decode_png, encode_png
from pipeline.data.store import read_samples
from pipeline.errors import InputError
from pipeline.export.choices import LAYOUTS
from pipeline.export.exporting import export
from pipeline.export.manifests import file_entry
from pipeline.export.signing import keygen, load_private
from pipeline.verification import verify


@pytest.fixture(scope="module")
def exports(tmp_path_factory, keys):
    """Return layout -> a signed export, not to be changed."""
    root = tmp_path_factory.mktemp("exports")
    write(root / "source", parts())
    for layout in LAYOUTS:
        export(root / "source", root / layout, layout, keys.private, images_per_shard=4)
    return root


@pytest.fixture
def copy(exports, tmp_path):
    def make(layout):
        return shutil.copytree(exports / layout, tmp_path / layout)

    return make


def problems(folder, keys=None, **more):
    return verify(folder, keys and keys.public, **more).problems


def says(found, text):
    return any(text in line for line in found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_export_has_no_problems(exports, keys, layout):
    findings = verify(exports / layout, keys.public)
    assert findings.problems == []
    assert says(findings.checked, f"by the given key, {keys.fingerprint}")
    assert says(findings.checked, "26 rows, 5 of them synthetic")
    alone = verify(exports / layout)
    assert alone.problems == []
    assert says(alone.checked, f"by the key inside, {keys.fingerprint}; compare")


def test_without_a_signature(grey, keys, tmp_path):
    export(grey, tmp_path / "out", "coco")
    findings = verify(tmp_path / "out")
    assert findings.problems == []
    assert says(findings.checked, "signature: none")
    assert says(problems(tmp_path / "out", keys), "not signed at all")


def test_another_key(exports, tmp_path):
    other = keygen(tmp_path)
    found = problems(exports / "coco", other)
    assert says(found, "signed by another key: ")
    assert says(found, "wrong signature: manifest.json.sig")
    with pytest.raises(InputError, match="not an Ed25519 public key"):
        verify(exports / "coco", other.private)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_single_file_counts(exports, copy, layout):
    """Changed by one bit, or taken away, each file of an export is missed."""
    folder = copy(layout)
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    kinds = {}  # one file of each kind is enough, to keep the test short
    for name in names:
        kinds.setdefault((name.parts[0], name.suffix), name)
    for name in kinds.values():
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert says(problems(folder), "changed") or says(problems(folder), str(name)), name
        (folder / name).unlink()
        assert says(problems(folder), "missing") or says(problems(folder), str(name)), name
        (folder / name).write_bytes(data)
    assert problems(folder) == []
    (folder / "more.png").write_bytes(b"x")
    assert says(problems(folder), "added: more.png")


def reseal(folder, key=None, edit=None, shard=None, edit_shard=None):
    """Write sums, and signatures where there is a key, anew, as a forger or a careless maker."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    private = key and load_private(key.private)
    for name in manifest["shards"]:
        data = json.loads((folder / name).read_text())
        if name == shard:
            edit_shard(data)
        data["files"] = {
            one: file_entry((folder / one).read_bytes()).model_dump()
            for one in data["files"]
            if (folder / one).is_file()
        }
        (folder / name).write_text(json.dumps(data))
        if private:
            (folder / f"{name}.sig").write_bytes(private.sign((folder / name).read_bytes()))
    for name in manifest["files"]:
        manifest["files"][name] = file_entry((folder / name).read_bytes()).model_dump()
    if edit:
        edit(manifest)
    path.write_text(json.dumps(manifest))
    if private:
        (folder / "manifest.json.sig").write_bytes(private.sign(path.read_bytes()))


def test_new_sums_without_the_key_are_forged(copy):
    folder = copy("folder")
    (folder / "README.md").write_text("mine")
    reseal(folder)
    found = problems(folder)
    assert f"{folder}: wrong signature: manifest.json.sig" in found
    assert all("wrong signature" in line for line in found)  # nothing else shows


def test_a_signature_taken_away(copy, keys):
    folder = copy("store")
    for path in folder.rglob("*.sig"):
        path.unlink()
    assert says(problems(folder), "missing: manifest.json.sig")
    reseal(folder, edit=lambda m: m.update(public_key=None, fingerprint=None))
    assert problems(folder) == []  # an export that nobody signed, and that says so
    assert says(problems(folder, keys), "not signed at all")
    (folder / "manifest.json").unlink()
    assert says(problems(folder), "missing: manifest.json")  # and not a bare store


SHARD = "manifests/train-00000.json"


def test_a_synthetic_row_in_test(copy, keys):
    folder = copy("coco")

    def edit(data):
        data["rows"][0]["origin"] = "synthetic"
        data["origins"] = {"real": 3, "synthetic": 1}

    reseal(folder, keys, shard="manifests/test-00000.json", edit_shard=edit)
    found = problems(folder)
    assert says(found, "synthetic rows outside train")
    assert says(found, "synthetic images without their mark")
    assert says(found, "the row digest is not that of its rows")
    assert says(found, "the rows are not those of the store")


def real_png():
    return encode_png(rows(1, "train", 99).images[0])


def test_another_image_in_the_place_of_one(copy, keys):
    folder = copy("folder")
    path = next((folder / "train" / "cat").glob("*-synthetic.png"))
    path.write_bytes(real_png())
    reseal(folder, keys)
    found = problems(folder)
    assert len(found) == 1
    assert "the pixels are not those of the id" in found[0]


def test_a_mark_taken_off(copy, keys):
    folder = copy("folder")
    path = next((folder / "train" / "cat").glob("*-synthetic.png"))
    path.write_bytes(encode_png(decode_png(path.read_bytes(), "L")))
    reseal(folder, keys)
    (problem,) = problems(folder)
    assert "synthetic images without their mark: " in problem


@pytest.mark.parametrize("layout", ["store", "webdataset"])
def test_rows_that_say_other_than_the_manifest(copy, keys, layout):
    folder = copy(layout)
    if layout == "store":
        path = next((folder / "data").glob("test-*"))
        table = pq.read_table(path)
        position = table.schema.get_field_index("label")
        labels = [[(v + 1) % 3 for v in table.column("label").to_pylist()]]
        pq.write_table(table.set_column(position, table.schema.field(position), labels), path)
    else:
        path = folder / "test-00000.tar"
        with tarfile.open(path) as file:
            members = [(m, file.extractfile(m).read()) for m in file]
        with tarfile.open(path, "w") as file:
            for member, data in members:
                data = b"9" if member.name.endswith(".cls") else data
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    reseal(folder, keys)
    assert says(problems(folder), "rows whose label, split, origin or id is another")


@pytest.mark.parametrize("layout", ["store", "webdataset"])
def test_rows_too_few_and_too_many_in_a_shard(copy, keys, layout):
    folder = copy(layout)
    first, second = sorted(folder.rglob("train-*.parquet" if layout == "store" else "train-*.tar"))[
        :2
    ]
    shutil.copyfile(second, first)
    reseal(folder, keys)
    found = problems(folder)
    assert found
    if layout == "webdataset":
        assert says(found, "images that are no row")
        assert says(found, "rows without an image")
    else:
        assert says(found, "the pixels are not those of the id")


def test_a_test_image_in_train_too(tmp_path):
    test = parts()[3]
    again = rows(5, "train", 3)
    assert again.ids == test.ids
    write(tmp_path / "store", [again, test])
    export(tmp_path / "store", tmp_path / "out", "coco")
    assert says(problems(tmp_path / "out"), "images in test and in another split")


def test_lineage(grey, tmp_path):
    real = read_samples(grey)
    by_split = {
        s: [i for i, x in zip(real.ids, real.splits, strict=True) if x == s]
        for s in ("train", "validation", "test")
    }
    run = tmp_path / "run"
    (run / "train").mkdir(parents=True)
    ids, base = run / "train" / "training_ids.txt", run / "pretrain" / "base" / "training_ids.txt"
    ids.write_text("\n".join(by_split["train"] + by_split["validation"]))
    export(grey, tmp_path / "out", "coco", lineage={"training_ids": ids})
    findings = verify(tmp_path / "out")
    assert findings.problems == []
    assert says(findings.checked, "the generator learned from")
    export(grey, tmp_path / "bare", "coco")
    assert problems(tmp_path / "bare", artifacts=run) == []
    base.parent.mkdir(parents=True)
    base.write_text(by_split["validation"][0])
    assert says(problems(tmp_path / "bare", artifacts=run), "its base saw validation or test rows")
    base.unlink()
    ids.write_text("x\n" * 3 + by_split["test"][1])
    leak = f"the generator saw test rows: {by_split['test'][1][:12]}"
    assert says(problems(tmp_path / "bare", artifacts=run), leak)
    export(grey, tmp_path / "out", "coco", lineage={"training_ids": ids}, force=True)
    assert says(problems(tmp_path / "out"), leak)
    ids.write_bytes(b"\xff\xfe")
    assert says(problems(tmp_path / "bare", artifacts=run), "no list of ids")
    with pytest.raises(InputError, match="no list of the images that a generator learned from"):
        verify(tmp_path / "bare", artifacts=tmp_path)


def test_an_edited_test_image(tmp_path):
    test = parts()[3]
    made = rows(2, "train", 7, "synthetic", parent_id=[None, test.ids[0]])
    write(tmp_path / "store", [rows(3, "train", 0), made, test])
    export(tmp_path / "store", tmp_path / "out", "webdataset")
    text = f"were edited from validation or test rows: {test.ids[0][:12]}"
    assert says(problems(tmp_path / "out"), text)


def test_links_are_faults_and_not_followed(copy, tmp_path):
    folder = copy("coco")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.png").write_bytes(b"x")
    (folder / "more").symlink_to(tmp_path / "outside")
    image = next((folder / "images" / "train").iterdir())
    image.rename(tmp_path / "image.png")
    image.symlink_to(tmp_path / "image.png")
    os.mkfifo(folder / "pipe")
    found = problems(folder)
    assert says(found, "links, pipes or devices")
    assert says(found, f"not a path inside the export: images/train/{image.name}")
    assert not says(found, "x.png")
    shutil.copyfile(folder / "manifest.json", tmp_path / "manifest.json")
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert says(problems(folder), "missing: manifest.json")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "x\0y", "a\\b"])
def test_names_that_lead_out(copy, name):
    folder = copy("coco")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    manifest["shards"].append(name)
    path.write_text(json.dumps(manifest))
    assert says(problems(folder), "not a path inside")


def test_rows_that_name_files_outside(copy, keys):
    folder = copy("folder")
    reseal(folder, keys, shard=SHARD, edit_shard=lambda d: d["rows"][0].update(image="/etc/passwd"))
    found = problems(folder)
    assert says(found, "rows without an image: /etc/passwd")
    assert says(found, "images that are no row")


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": "replenish-export-1", "layout": 3, "shards": {}}',
        b'{"format": NaN, "layout": "store", "shards": [1], "files": {"a": null}}',
    ],
)
def test_a_hostile_manifest_is_one_problem_and_no_traceback(copy, name, data):
    folder = copy("store")
    (folder / name).write_bytes(data)
    found = problems(folder)
    assert found
    assert all(line.isprintable() for line in found)


def test_a_huge_manifest_is_not_read(copy, monkeypatch):
    import pipeline.export.manifests as manifests

    monkeypatch.setattr(manifests.read_bounded, "__defaults__", (1000,))
    assert says(problems(copy("coco")), "manifest.json is larger than")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(classes=[1]),
        lambda m: m.update(image_size_px=10**9),
        lambda m: m.update(image_size_px=9),
        lambda m: m.update(layout="coco"),
        lambda m: m.update(layout="webdataset"),
        lambda m: m.update(classes=[]),
        lambda m: m.update(shards=m["shards"][1:]),
        lambda m: m.update(shards=[*m["shards"], m["shards"][0], "README.md", "absent"]),
        lambda m: m.update(shards=[*m["shards"], "README.md"]),
        lambda m: m.update(public_key="0" * 64),
        lambda m: m.update(fingerprint="0" * 64),
        lambda m: m.update(origins={"real": 1, "synthetic": 2}),
        lambda m: m.update(store_digest="0" * 64),
        lambda m: m.update(more=1),
        lambda m: m.update(image_mode="RGB"),
    ],
)
def test_a_signed_manifest_that_is_wrong(copy, keys, edit):
    folder = copy("store")
    reseal(folder, keys, edit=edit)
    assert problems(folder)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layout=st.sampled_from(["store", "webdataset", "folder"]),
    place=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    choice=st.integers(0, 10**6),
)
def test_damaged_contents_end_in_problems_even_with_new_sums(
    exports, keys, tmp_path_factory, layout, place, byte, choice
):
    """A byte changed anywhere in a shard's file, and sealed again: found, or no fault of a row."""
    folder = shutil.copytree(exports / layout, tmp_path_factory.mktemp("fuzz") / layout)
    pattern = {"store": "data/*", "webdataset": "*.tar", "folder": "*/*/*.png"}[layout]
    files = sorted(folder.glob(pattern))
    path = files[choice % len(files)]
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    assert (
        problems(folder)
        or bytes(data) == (exports / layout / path.relative_to(folder)).read_bytes()
    )
    reseal(folder, keys)
    assert all(line.isprintable() for line in problems(folder))
    shutil.rmtree(folder)


def test_a_key_asks_for_an_export(grey, keys):
    with pytest.raises(InputError, match="no export, so there is no signature"):
        verify(grey, keys.public)
