from types import SimpleNamespace

import numpy as np
import pytest
from support import make_scores

from pipeline.curation.selection import Thresholds
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.rounds import fill_plan

LIMITS = Thresholds(confidence=0.5, copy_distance=0.0, copy_ratio=0.0)


class FakeScorer:
    """Good is what has an even first pixel (all, where `rate` is 1)."""

    def __init__(self, rate):
        self.rate = rate

    def score(self, images, labels):
        brightness = images[:, 0, 0, 0].astype(float) / 255
        good = brightness < self.rate
        return make_scores(confidence=np.where(good, 0.9, 0.1), predicted=labels)


def run(wanted, rate, max_rounds=4, size=8, calls=None):
    def sample_shards(shards):
        if calls is not None:
            calls.append([(shard.label, shard.number) for shard in shards])
        return [
            np.random.default_rng([shard.label, shard.number]).integers(
                0, 256, (shard.size, 4, 4, 1), dtype=np.uint8
            )
            for shard in shards
        ]

    return fill_plan(
        [f"c{i}" for i in range(len(wanted))],
        wanted,
        size,
        max_rounds,
        sample_shards,
        FakeScorer(rate),
        LIMITS,
        [],
        {"generator": "g", "guidance": 1.5},
    )


def test_fill_brings_every_class_up_to_the_largest():
    counts = {"a": 10, "b": 4, "c": 1}
    assert wanted_images(counts, "fill") == {"a": 0, "b": 6, "c": 9}
    assert set(wanted_images(counts, "auto").values()) == {20}
    assert set(wanted_images({"a": 9000, "b": 1}, "auto").values()) == {300}
    assert wanted_images(counts, 5) == {"a": 5, "b": 5, "c": 5}


def test_every_class_gets_what_it_wants_and_the_rest_is_surplus():
    result = run([10, 0, 3], rate=1.1)
    assert [one.accepted for one in result.classes] == [10, 0, 3]
    assert [one.shortfall for one in result.classes] == [0, 0, 0]
    assert result.classes[1].candidates == 0
    assert result.rounds == 1
    for one in result.classes:
        assert sum(one.reasons.values()) == one.candidates
    assert result.classes[0].reasons["surplus"] == result.classes[0].candidates - 10


def test_further_rounds_ask_for_more_of_the_classes_that_fall_short():
    calls = []
    result = run([40, 1], rate=0.3, max_rounds=20, calls=calls)
    assert result.classes[0].accepted == 40
    assert result.rounds > 1
    assert all(label == 0 for label, _ in calls[-1])
    numbers = [number for call in calls for label, number in call if label == 0]
    assert numbers == list(range(len(numbers)))


def test_the_limit_of_rounds_holds_and_the_shortfall_is_told():
    result = run([5], rate=0.0, max_rounds=3)
    assert result.rounds == 3
    assert result.classes[0].shortfall == 5
    assert set(result.candidates.extra["reason"]) == {"unsure"}


def test_a_larger_plan_keeps_the_images_of_a_smaller_one():
    small, large = run([6], rate=0.5), run([30], rate=0.5)
    kept = [
        [
            i
            for i, r in zip(x.candidates.ids, x.candidates.extra["reason"], strict=True)
            if r == "accepted"
        ]
        for x in (small, large)
    ]
    assert kept[1][:6] == kept[0]


def test_candidates_carry_their_lineage():
    candidates = run([5], rate=1.1).candidates
    assert candidates.extra["index"] == list(range(8))
    assert set(candidates.extra["generator"]) == {"g"}
    assert set(candidates.extra["round"]) == {1}
    assert set(candidates.splits) == {"train"}
    assert set(candidates.origins) == {"synthetic"}


def test_nothing_wanted_is_nothing_done():
    result = run([0, 0], rate=1.1)
    assert result.candidates is None
    assert result.rounds == 0


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_the_account_adds_up(rate):
    result = run([12, 7], rate=rate, max_rounds=2)
    one = SimpleNamespace(total=sum(c.candidates for c in result.classes))
    assert one.total == len(result.candidates)
    assert sum(c.accepted for c in result.classes) == result.candidates.extra["reason"].count(
        "accepted"
    )
