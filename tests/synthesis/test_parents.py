"""Parents, strengths and masks of candidates, and the user's mask files."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipeline.data.store import make_samples
from pipeline.errors import InputError, StageError
from pipeline.params import SynthesizeParams
from pipeline.synthesis.parents import make_editing, masks_digest, read_masks

CLASSES = ("a", "b", "c")


def training(split="train", origin="real"):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
    return make_samples(images, labels, split=split, origin=origin)


def editing(**params):
    params = SynthesizeParams(**params)
    return make_editing(params, training(), CLASSES, params.mode)


def write_mask(folder, name="one.png", size=(8, 8), box=(2, 5)):
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[box[0] : box[1]] = 255
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def test_a_parent_is_fixed_by_class_and_index_alone():
    one, other = editing(mode="edit"), editing(mode="edit")
    backwards = [other.origin(3, 0, i) for i in reversed(range(20))][::-1]
    for i in range(20):
        assert one.origin(3, 0, i).row == backwards[i].row
        assert one.origin(3, 0, i).strength == backwards[i].strength
    assert [one.origin(3, 0, i).row for i in range(5)] != [
        one.origin(4, 0, i).row for i in range(5)
    ]


def test_edits_start_from_their_class_each_image_as_often_as_any_other():
    found = Counter(editing(mode="edit").origin(0, 0, i).row for i in range(50))
    assert found == dict.fromkeys(range(5), 10)


def test_crossing_starts_from_the_other_classes_alone():
    found = Counter(editing(mode="cross_class").origin(0, 2, i).row for i in range(80))
    assert found == dict.fromkeys(range(8), 10)


def test_strengths_are_mixed_evenly():
    made = editing(mode="edit", strengths=(0.2, 0.5))
    found = Counter(made.origin(0, 0, i).strength for i in range(400))
    assert set(found) == {0.2, 0.5}
    assert 150 < found[0.2] < 250


def test_without_another_class_crossing_is_refused():
    only = training().take(np.arange(5))
    made = make_editing(SynthesizeParams(mode="cross_class"), only, CLASSES, "cross_class")
    with pytest.raises(InputError, match="no training image of another class"):
        made.origin(0, 0, 0)


@pytest.mark.parametrize(("split", "origin"), [("test", "real"), ("train", "synthetic")])
def test_only_real_training_rows_are_parents(split, origin):
    with pytest.raises(StageError, match="only real training rows may be parents"):
        make_editing(SynthesizeParams(mode="edit"), training(split, origin), CLASSES, "edit")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("mask", ["box", "border"])
def test_a_drawn_mask_covers_its_share_and_never_all(mask, share):
    made = editing(mode="inpaint", mask=mask, mask_share=share)
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
    made = editing(mode="inpaint")
    assert len({made.origin(0, 0, i).mask.tobytes() for i in range(30)}) > 15


def test_the_users_masks_are_read_by_name_and_used(tmp_path):
    write_mask(tmp_path, "b.png", box=(0, 3))
    write_mask(tmp_path, "a.png", box=(4, 8))
    (tmp_path / "README.md").write_text("no mask")
    names = [name for name, _ in read_masks(tmp_path, 8)]
    assert names == ["a.png", "b.png"]
    made = editing(mode="inpaint", mask="user", mask_path=str(tmp_path))
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
