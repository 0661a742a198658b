import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from support import make_scores

from pipeline.curation.selection import Thresholds
from pipeline.data.store import (
    concatenate,
    read_samples,
)
from pipeline.data.store_writer import StoreWriter
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.rounds import fill_plan

LIMITS = Thresholds(confidence=0.5, copy_distance=0.0, copy_ratio=0.0)


class FakeScorer:
    """Good is what has an even first pixel (all, where `rate` is 1)."""

    def __init__(self, rate):
        self.rate = rate

    def score(self, images, labels, parents=None):
        brightness = images[:, 0, 0, 0].astype(float) / 255
        good = brightness < self.rate
        return make_scores(confidence=np.where(good, 0.9, 0.1), predicted=labels)


def draw(shard):
    random = np.random.default_rng([shard.label, shard.number])
    return random.integers(0, 256, (shard.size, 4, 4, 1), dtype=np.uint8)


def run(wanted, rate, max_rounds=4, size=8, calls=None, real_ids=(), sampled=draw):
    """Return the account, with all candidates as `candidates`."""
    parts = []

    def sample_shards(shards):
        if calls is not None:
            calls.append([(shard.label, shard.number) for shard in shards])
        for shard in shards:
            yield shard, sampled(shard)

    result = fill_plan(
        [f"c{i}" for i in range(len(wanted))],
        wanted,
        size,
        max_rounds,
        sample_shards,
        FakeScorer(rate),
        LIMITS,
        real_ids,
        {"generator": "g", "guidance": 1.5},
        parts.append,
    )
    candidates = concatenate(parts) if parts else None
    return SimpleNamespace(
        classes=result.classes, rounds=result.rounds, candidates=candidates, parts=parts
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


def test_a_candidate_like_a_real_row_or_an_earlier_candidate_is_a_repeat():
    first = run([20], rate=1.1)
    real = first.candidates.ids[3]

    def twice(shard):  # the shards 0 and 1 are the same
        return draw(type(shard)(shard.label, max(shard.number, 1), shard.size))

    again = run([20], rate=1.1, real_ids=[real])
    assert again.candidates.extra["reason"][:5] == [
        *["accepted"] * 3,
        "repeat",
        "accepted",
    ]
    doubled = run([20], rate=1.1, max_rounds=1, sampled=twice)
    assert doubled.candidates.extra["reason"][:16] == ["accepted"] * 8 + ["repeat"] * 8


def test_each_shard_is_judged_and_handed_over_before_the_next_one_is_asked_for():
    events = []

    def sample_shards(shards):
        for shard in shards:
            events.append(("drawn", shard.label, shard.number))
            yield shard, draw(shard)

    def sink(part):
        events.append(("kept", int(part.labels[0]), part.extra["index"][0] // 8))

    fill_plan(
        ["a", "b"], [12, 8], 8, 1, sample_shards, FakeScorer(1.1), LIMITS, [], {"seed": 0}, sink
    )
    order = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert events == [(what, *shard) for shard in order for what in ("drawn", "kept")]


def test_a_shard_that_was_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="class-0000-shard-000001 came where .*000000 was asked"):
        fill_plan(
            ["a"],
            [12],
            8,
            1,
            lambda shards: ((shard, draw(shard)) for shard in shards[::-1]),
            FakeScorer(1.1),
            LIMITS,
            [],
            {},
            lambda part: None,
        )


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak_bytes(images):
        folder = tmp_path / str(images)

        def sample_shards(shards):
            for shard in shards:
                random = np.random.default_rng(shard.number)
                yield shard, random.integers(0, 256, (shard.size, 32, 32, 1), dtype=np.uint8)

        tracemalloc.start()
        with StoreWriter(folder, ["a"], 32, "L", rows_per_shard=250) as writer:
            fill_plan(
                ["a"],
                [round(0.8 * images)],
                50,
                1,
                sample_shards,
                FakeScorer(1.1),
                LIMITS,
                [],
                {"generator": "g"},
                writer.add,
            )
            info = writer.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert info.counts == {"train": {"a": images}}
        return peak

    peak_bytes(250)  # what is loaded once
    few, many = peak_bytes(1_000), peak_bytes(8_000)
    # Ids and digests may grow, by some 150 bytes an image; the pixels alone are 1,024.
    assert many - few < 7_000 * 300
    assert len(read_samples(tmp_path / "8000")) == 8_000
