"""Parents and strengths of candidates."""

from collections import Counter

import numpy as np
import pytest

from pipeline.data.store import make_samples
from pipeline.errors import InputError, StageError
from pipeline.params import SynthesizeParams
from pipeline.synthesis.parents import make_editing

CLASSES = ("a", "b", "c")


def training(split="train", origin="real"):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
    return make_samples(images, labels, split=split, origin=origin)


def editing(**params):
    params = SynthesizeParams(**params)
    return make_editing(params, training(), CLASSES, params.mode)


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
