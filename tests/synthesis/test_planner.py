import itertools

import numpy as np
import pytest
import torch
from tiny_store import stripes

from pipeline.params import EvaluateParams
from pipeline.synthesis import planner
from pipeline.synthesis.planner import allocate, plan_images, write_plan

CPU = torch.device("cpu")
SIZES = np.array([[3, 3, 3], [6, 6, 6], [12, 12, 12]])
PARAMS = EvaluateParams(seeds=2, steps=25, batch_images=16, base_channels=8)


@pytest.mark.parametrize("budget", [0, 5, 9, 18, 30, None])
def test_the_allocation_is_the_best_of_all_there_are(budget):
    gain = np.array([[1.0, 0.2, -1.0], [1.5, 0.9, -0.5], [1.6, 2.0, -0.1]])
    every = np.vstack([[0, 0, 0], SIZES])
    value = np.vstack([[0, 0, 0], gain])
    possible = [
        (
            sum(value[s, k] for k, s in enumerate(pick)),
            -sum(every[s, k] for k, s in enumerate(pick)),
        )
        for pick in itertools.product(range(4), repeat=3)
        if budget is None or sum(every[s, k] for k, s in enumerate(pick)) <= budget
    ]
    wanted = allocate(SIZES, gain, budget)
    index = [every[:, k].tolist().index(wanted[k]) for k in range(3)]
    found = (sum(value[s, k] for k, s in enumerate(index)), -int(wanted.sum()))
    assert found == pytest.approx(max(possible))
    assert wanted[2] == 0  # nothing helps it


def test_of_equal_gains_the_fewest_images_are_taken():
    assert allocate(SIZES, np.ones((3, 3)), None).tolist() == [3, 3, 3]


def pilot(counts, seed):
    rows = stripes(counts, "train", seed)
    return rows.images, rows.labels


def plan(training, validation, images, labels, **changes):
    settings = {"budget_images": None, "margin_points": 2.0, "workers": 2, **changes}
    return plan_images(
        [f"c{k}" for k in range(4)],
        stripes(training, "train", 0),
        stripes(validation, "validation", 1),
        images,
        labels,
        settings["budget_images"],
        settings["margin_points"],
        PARAMS,
        CPU,
        settings["workers"],
        settings.get("on_done", lambda done, total: None),
    )


class Fake:
    """Stands in for training: a class's probability of being right, by its synthetic images."""

    def __init__(self, monkeypatch, gains, steal=()):
        """`gains`: of each class, per image; each image of others takes `steal` from a class."""
        self.gains, self.steal = np.asarray(gains), np.asarray(steal or np.zeros(len(gains)))
        self.asked = []
        monkeypatch.setattr(planner, "fit_pair", self.fit)
        monkeypatch.setattr(planner, "predict", self.predict)

    def fit(self, bench, params, pair, device):
        counts = np.array([len(rows) for rows in bench.pools.added["synthetic"]])
        self.asked.append(counts.tolist())
        others = counts.sum() - counts
        return 0.5 + self.gains * counts - self.steal * others + 1e-3 * pair[1]

    def predict(self, chance, images):
        # Which class an image is of is not known here; the tests have four rows of each, in order.
        labels = np.repeat(np.arange(4), len(images) // 4)
        right = np.clip(chance[labels] + 0.01 * (np.arange(len(images)) % 4), 0.01, 0.99)
        logits = np.zeros((len(images), 4), np.float32)
        rest = np.log((1 - right) / 3)
        logits[:] = rest[:, None]
        logits[np.arange(len(images)), labels] = np.log(right)
        return logits


def test_each_class_gets_what_its_own_curve_speaks_for(monkeypatch):
    Fake(monkeypatch, [0.0, 0.03, -0.03, 0.02])
    found = plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3))
    assert found.images[1] == found.images[3] == 8
    assert found.images[2] == 0
    one = found.classes[1]
    assert [tried.images for tried in one.tried] == [2, 4, 8]
    assert [tried.gain_points for tried in one.tried] == pytest.approx([6, 12, 24], abs=0.5)
    assert (one.training_images, one.validation_images, one.head) == (5, 4, False)
    assert found.classes[0].head
    assert found.expected_points == pytest.approx((24 + 16) / 4, abs=2.5)


def test_the_budget_goes_where_an_image_brings_most(monkeypatch):
    Fake(monkeypatch, [0.001, 0.03, 0.001, 0.002])
    found = plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3), budget_images=8)
    assert sum(found.images) <= 8
    assert found.images[1] == 8


def test_a_plan_that_takes_from_a_head_class_is_cut_and_at_last_given_up(monkeypatch):
    # Class 0 is at 0.5 and wins against 0.5 / 3; it loses the argmax below a quarter.
    fake = Fake(monkeypatch, [0.0, 0.03, 0.03, 0.03], steal=[0.013, 0, 0, 0])
    found = plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3))
    assert found.images == [0, 4, 4, 4]
    assert "cut to 50%" in found.reason
    assert found.classes[0].confirmed_points == 0
    assert found.confirmed_points is not None
    assert fake.asked[-1] == [0, 4, 4, 4]
    Fake(monkeypatch, [0.0, 0.03, 0.03, 0.03], steal=[0.2, 0, 0, 0])
    assert plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3)).images == [0, 0, 0, 0]
    allowed = plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3), margin_points=100.0)
    assert allowed.images == [0, 8, 8, 8]


def test_nothing_helps_and_nothing_is_kept(monkeypatch):
    Fake(monkeypatch, [-0.01] * 4)
    found = plan([30, 5, 6, 7], [4] * 4, *pilot([8] * 4, 3))
    assert found.images == [0, 0, 0, 0]
    assert "no class gains" in found.reason


def test_noise_between_classes_draws_their_curves_together():
    curves = planner._Curves(SIZES[:1], np.array([[1.0, 2.0, 3.0]]), np.array([[5.0, 5.0, np.inf]]))
    assert planner._shrink(curves)[0] == pytest.approx([1.5, 1.5, 1.5])
    sure = planner._Curves(SIZES[:1], np.array([[0.0, 10.0, 5.0]]), np.full((1, 3), 0.01))
    assert planner._shrink(sure)[0] == pytest.approx([0, 10, 5], abs=0.01)


def test_classes_of_real_trainings_are_planned_the_same_with_any_number_of_workers(tmp_path):
    told = []
    training, validation = [12, 3, 3, 3], [5, 5, 5, 0]
    images, labels = pilot([6] * 4, 3)
    found = plan(
        training, validation, images, labels, on_done=lambda done, total: told.append((done, total))
    )
    again = plan(training, validation, images, labels, workers=1)
    assert found == again
    assert max(found.images) <= 6
    assert found.classes[3].tried == []  # it has no validation row: as the others do
    assert told[-1][0] <= told[-1][1]
    write_plan(tmp_path / "plan.csv", found)
    lines = (tmp_path / "plan.csv").read_text().splitlines()
    assert lines[0].startswith("class,training_images,images,gain_points")
    assert len(lines) == 1 + 3 * 3


def test_without_validation_rows_or_images_there_is_nothing_to_decide_by():
    images, labels = pilot([6] * 4, 3)
    found = plan([12, 3, 3, 3], [0] * 4, images, labels)
    assert found.images == [6] * 4
    assert "no validation images" in found.reason
    assert found.confirmed_points is None
    none = plan([12, 3, 3, 3], [2] * 4, images[:0], labels[:0])
    assert none.images == [0] * 4
