"""Masks of inpainting: drawn ones, the user's files, and the rows' own out of a manifest."""

import csv
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import encode_png
from pipeline.data.store import make_samples, read_info, read_samples
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest
from pipeline.params import PrepareParams, SynthesizeParams
from pipeline.stages import prepare
from pipeline.synthesis.masks import masks_digest, own_masks, read_masks
from pipeline.synthesis.parents import make_editing
from pipeline.tracking.tracker import NullTracker

CLASSES = ("a", "b", "c")


def training(masks=None):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
    rows = make_samples(images, labels, split="train", origin="real")
    return rows if masks is None else replace(rows, extra={"mask": masks})


def editing(rows=None, **params):
    params = SynthesizeParams(mode="inpaint", **params)
    return make_editing(params, rows or training(), CLASSES, params.mode)


def write_mask(folder, name="one.png", size=(8, 8), box=(2, 5)):
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[box[0] : box[1]] = 255
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def stored(first, end, side=8):
    """Return what prepare stores of a mask that marks the rows `first` to `end` of an image."""
    pixels = np.zeros((side, side, 1), dtype=np.uint8)
    pixels[first:end] = 255
    return encode_png(pixels)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("mask", ["box", "border"])
def test_a_drawn_mask_covers_its_share_and_never_all(mask, share):
    made = editing(mask=mask, mask_share=share)
    shares = []
    for i in range(50):
        found = made.origin(0, 0, i).mask
        assert found.any()
        assert not found.all()
        shares.append(found.mean())
    assert np.mean(shares) == pytest.approx(share, abs=0.12)
    if mask == "border" and share > 0.1:
        assert made.origin(0, 0, 0).mask[0, 0]


def test_boxes_stand_in_many_places():
    made = editing()
    assert len({made.origin(0, 0, i).mask.tobytes() for i in range(30)}) > 15


def test_the_users_masks_are_read_by_name_and_used(tmp_path):
    write_mask(tmp_path, "b.png", box=(0, 3))
    write_mask(tmp_path, "a.png", box=(4, 8))
    (tmp_path / "README.md").write_text("no mask")
    names = [name for name, _ in read_masks(tmp_path, 8)]
    assert names == ["a.png", "b.png"]
    made = editing(mask="user", mask_path=str(tmp_path))
    origins = [made.origin(0, 0, i) for i in range(20)]
    assert {origin.mask_name for origin in origins} == {"a.png", "b.png"}
    chosen = next(origin for origin in origins if origin.mask_name == "b.png")
    assert chosen.mask[:3].all()
    assert not chosen.mask[3:].any()


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    write_mask(tmp_path, "wide.png", size=(8, 16))
    with pytest.raises(InputError, match=r"wide\.png: a mask of 16 x 8 px for images of 8 x 8"):
        read_masks(tmp_path, 8)


@pytest.mark.parametrize(("box", "kind"), [((0, 8), "all-white mask"), ((0, 0), "all-black mask")])
def test_a_mask_needs_both_colours(tmp_path, box, kind):
    write_mask(tmp_path, box=box)
    with pytest.raises(InputError, match=kind):
        read_masks(tmp_path, 8)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: no usable mask: not an image"):
        read_masks(tmp_path, 8)


def test_no_masks_at_all_are_an_error_that_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"no masks \(\*\.png\); put grey PNG files of 8 x 8"):
            read_masks(folder, 8)


def test_the_digest_follows_the_masks_where_they_are_used(tmp_path):
    used = SynthesizeParams(mode="inpaint", mask="user", mask_path=str(tmp_path))
    write_mask(tmp_path)
    before = masks_digest(used)
    assert before == masks_digest(used)
    write_mask(tmp_path, box=(1, 2))
    assert masks_digest(used) != before
    assert masks_digest(SynthesizeParams(mode="edit", mask_path=str(tmp_path))) == ""


def test_own_masks_are_of_the_rows_that_have_a_part_to_draw_and_a_part_to_keep():
    rows = training([stored(2, 5), None, stored(0, 0), stored(0, 8), *[None] * 4, stored(7, 8)])
    found = own_masks(rows)
    assert list(found) == [0, 8]
    assert found[0].dtype == bool
    assert np.flatnonzero(found[0].all(axis=1)).tolist() == [2, 3, 4]
    assert found[0].sum() == 24
    assert found[8].sum() == 8


def test_each_parent_is_inpainted_within_its_own_mask():
    rows = training(
        [stored(1, 2), None, stored(2, 4), None, stored(3, 6), *[stored(0, 1)] * 3, stored(4, 5)]
    )
    made = editing(rows, mask="own")
    origins = [made.origin(0, 0, i) for i in range(30)]
    assert Counter(origin.row for origin in origins) == {0: 10, 2: 10, 4: 10}
    assert {origin.row: int(origin.mask.sum()) for origin in origins} == {0: 8, 2: 16, 4: 24}
    lineage = made.lineage(0, 0, range(3))
    assert lineage.columns["mask"] == ["own"] * 3
    assert lineage.columns["strength"] == [1.0] * 3
    assert set(lineage.columns["parent_id"]) == {rows.ids[row] for row in (0, 2, 4)}


def test_an_own_masks_candidate_is_fixed_by_seed_class_and_index_alone():
    rows = training([stored(i % 4, 5) for i in range(9)])
    one, other = editing(rows, mask="own"), editing(rows, mask="own")
    backwards = [other.origin(3, 0, i).row for i in reversed(range(20))][::-1]
    assert [one.origin(3, 0, i).row for i in range(20)] == backwards
    assert [one.origin(4, 0, i).row for i in range(20)] != backwards


def test_a_class_without_masks_of_its_own_is_refused_by_name():
    made = editing(
        training([*[stored(2, 5)] * 5, None, stored(0, 0), stored(0, 8), None]), mask="own"
    )
    assert made.origin(0, 0, 0).mask.sum() == 24
    for label, name in ((1, "b"), (2, "c")):
        message = (
            rf"synthesize.mask = own: no training image of {name} has a mask.*box, border or user"
        )
        with pytest.raises(InputError, match=message):
            made.origin(0, label, 0)


def test_a_store_without_masks_is_refused_with_the_remedy():
    with pytest.raises(
        InputError, match=r"no column `mask`; run `replenish prepare` on a manifest"
    ):
        editing(mask="own")


def test_masks_of_the_store_are_asked_for_by_inpainting_within_them_alone():
    for params in (
        SynthesizeParams(mode="edit", mask="own"),
        SynthesizeParams(mode="inpaint", mask="box"),
    ):
        assert not make_editing(params, training([b"no PNG"] * 9), CLASSES, params.mode).own


@pytest.mark.parametrize(
    ("png", "what"),
    [(b"no PNG", "cannot identify"), (stored(2, 5, side=4), "4 x 4 px for an image of 8 x 8")],
)
def test_a_damaged_stored_mask_is_a_failure_that_names_its_row(png, what):
    rows = training([None, png, *[None] * 7])
    with pytest.raises(StageError, match=rf"row {rows.ids[1][:12]} is damaged \(.*{what}.*--force"):
        own_masks(rows)


def write_manifest(folder, marked):
    """Write 40 images of 8 px, two classes, each masked but every fourth, and their table."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "mask"])
        for i in range(40):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            pixels[0, 0] = i  # by which the test knows the image
            mask = np.zeros((8, 8), dtype=np.uint8)
            mask[marked(i), 1:] = 1  # what is not black counts
            Image.fromarray(pixels).save(folder / f"{i}.png")
            Image.fromarray(mask).save(folder / f"{i}-mask.png")
            table.writerow([f"{i}.png", "ab"[i % 2], f"{i}-mask.png" if i % 4 else ""])
    return folder / "images.csv"


def run_prepare(table, out):
    params = PrepareParams(
        source="manifest",
        path=str(table),
        pool_path="none",
        imbalance=None,
        near_duplicates="off",
        label_issues="off",
    )
    return prepare.run(params, {}, out / "prepare", NullTracker()), out / "prepare" / "dataset"


def test_masks_of_a_manifest_come_through_prepare_to_their_own_images(tmp_path):
    _, store = run_prepare(write_manifest(tmp_path / "raw", lambda i: 1 + i % 7), tmp_path / "out")
    rows = read_samples(store, ("train",))
    made = make_editing(
        SynthesizeParams(mode="inpaint", mask="own"), rows, read_info(store).classes, "inpaint"
    )
    numbers = rows.images[:, 0, 0, 0].tolist()
    assert sorted(made.own) == [row for row, number in enumerate(numbers) if number % 4]
    for label, parity in ((0, 0), (1, 1)):
        for i in range(30):
            origin = made.origin(0, label, i)
            number = numbers[origin.row]
            assert (number % 2, number % 4 != 0) == (parity, True)
            marked = np.zeros((8, 8), dtype=bool)
            marked[1 + number % 7, 1:] = True
            assert np.array_equal(origin.mask, marked)


def test_other_masks_change_what_prepare_hands_on_and_not_the_digest_of_its_pixels(tmp_path):
    one, two = (
        run_prepare(
            write_manifest(tmp_path / name, lambda i, row=row: row), tmp_path / f"{name}-out"
        )
        for row, name in ((2, "a"), (3, "b"))
    )
    assert one[0].dataset_digest == two[0].dataset_digest
    manifests = [read_manifest(store.parent) for _, store in (one, two)]
    assert manifests[0].digest != manifests[1].digest  # which the stage synthesize is keyed by
    assert masks_digest(SynthesizeParams(mode="inpaint", mask="own")) == ""
