import math
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import make_judged, make_scores

from pipeline.curation.diversity import choose
from pipeline.data.images import Images
from pipeline.data.store import concatenate, read_samples
from pipeline.data.store_writer import StoreWriter
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.synthesis.ledger import ClassLedger, choose_kept, kept_images, narrow, write_out
from pipeline.synthesis.parents import Editing
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.rounds import best_recipe, fill_plan

SETTINGS = SamplerSettings("dpmsolver++", 2, Guidance(1.5))
RECIPE = Recipe("as asked", Path("g"), "g", SETTINGS)


def edits(classes=2):
    images = np.zeros((classes, 4, 4, 1), np.uint8)
    ids = tuple(f"parent-{k}" for k in range(classes))
    names = tuple(f"c{k}" for k in range(classes))
    editing = Editing("edit", images, np.arange(classes), ids, names, (0.5,), "box", 0.3, (), 1)
    return Recipe("edits", Path("g"), "g", SETTINGS, editing)


class FakeJudge:
    """Good is what has a dark enough first pixel, by recipe (all, where `rate` is above 1)."""

    def __init__(self, *rates, repeats=()):
        self.rates, self.seen, self.parents = rates, set(repeats), []

    def judge(self, images: Images, labels, ids, parents=None):
        rate = self.rates[0] if parents is None else self.rates[-1]
        self.parents.append(parents)
        good = images[:, 0, 0, 0].astype(float) / 255 < rate
        reasons = ["accepted" if one else "disagrees" for one in good]
        for i, identity in enumerate(ids):
            if identity in self.seen:
                reasons[i] = "repeat"
            self.seen.add(identity)
        features = images.reshape(len(images), -1).astype(np.float32)
        scores = make_scores(confidence=np.where(good, 0.9, 0.1), predicted=labels)
        return make_judged(scores, reasons, features)


def draw(shard):
    random = np.random.default_rng([shard.label, shard.number, shard.recipe])
    return random.integers(0, 256, (shard.size, 4, 4, 1), dtype=np.uint8)


def run(
    wanted, rate, max_rounds=4, size=8, calls=None, sampled=draw, how="first", times=1.0,
    recipes=(RECIPE,), adapt_below=0.0, judge=None,
):  # fmt: skip
    """Return the ledger, with all candidates as `candidates`."""

    def sample_shards(shards):
        if calls is not None:
            calls.append([(shard.label, shard.number, shard.recipe) for shard in shards])
        for shard in shards:
            yield shard, sampled(shard)

    ledger = fill_plan(
        [f"c{i}" for i in range(len(wanted))],
        wanted,
        [math.ceil(times * one) for one in wanted],
        size,
        max_rounds,
        sample_shards,
        judge or FakeJudge(rate),
        recipes,
        0,
        adapt_below,
        how != "first",
    )
    chosen = choose_kept(ledger, how)
    accepted, rejected = [], []
    write_out(
        ledger, chosen, recipes, 0, sampled, accepted.append, rejected.append, lambda done: None
    )
    parts = [part for part in accepted + rejected if len(part)]
    return SimpleNamespace(
        ledger=ledger,
        classes=ledger.classes,
        rounds=ledger.rounds,
        chosen=chosen,
        accepted=concatenate(accepted) if accepted else None,
        rejected=concatenate(rejected) if rejected else None,
        candidates=concatenate(parts) if parts else None,
    )


def kept(result):
    return [len(result.chosen.order[k]) for k in range(len(result.classes))]


def test_fill_brings_every_class_up_to_the_largest():
    counts = {"a": 10, "b": 4, "c": 1}
    assert wanted_images(counts, "fill") == {"a": 0, "b": 6, "c": 9}
    assert set(wanted_images(counts, "auto").values()) == {300}
    many = dict.fromkeys(map(str, range(100)), 9)
    assert set(wanted_images(many, "auto").values()) == {30}
    assert set(wanted_images({**many, "x": 40}, "auto").values()) == {80}
    assert set(wanted_images({"a": 9000, "b": 1}, "auto").values()) == {300}
    assert wanted_images(counts, 5) == {"a": 5, "b": 5, "c": 5}


def test_every_class_gets_what_it_wants_and_the_rest_is_surplus():
    result = run([10, 0, 3], rate=1.1)
    assert kept(result) == [10, 0, 3]
    assert result.classes[1].candidates.total() == 0
    assert result.rounds == 1
    for one in result.classes:
        assert sum(one.reasons.values()) == one.candidates.total()
    surplus = result.candidates.extra["reason"].count("surplus")
    assert surplus == len(result.candidates) - 13 == len(result.rejected)


def test_further_rounds_ask_for_more_of_the_classes_that_fall_short():
    calls = []
    result = run([40, 1], rate=0.3, max_rounds=20, calls=calls)
    assert kept(result)[0] == 40
    assert result.rounds > 1
    assert all(label == 0 for label, _, _ in calls[-1])
    numbers = [number for call in calls for label, number, _ in call if label == 0]
    assert numbers == list(range(len(numbers)))


def test_the_limit_of_rounds_holds_and_the_shortfall_is_told():
    result = run([5], rate=0.0, max_rounds=3)
    assert result.rounds == 3
    assert result.classes[0].missing == 5
    assert set(result.candidates.extra["reason"]) == {"disagrees"}


def test_a_larger_plan_keeps_the_images_of_a_smaller_one():
    small, large = run([6], rate=0.5), run([30], rate=0.5)
    assert large.accepted.ids[:6] == small.accepted.ids


def test_candidates_carry_their_lineage():
    candidates = run([5], rate=1.1).candidates
    assert sorted(candidates.extra["index"]) == list(range(8))
    assert set(candidates.extra["generator"]) == {"g"}
    assert set(candidates.extra["guidance"]) == {1.5}
    assert set(candidates.extra["round"]) == {1}
    assert set(candidates.splits) == {"train"}
    assert set(candidates.origins) == {"synthetic"}
    assert "parent_id" not in candidates.extra


def test_nothing_wanted_is_nothing_done():
    result = run([0, 0], rate=1.1)
    assert result.candidates is None
    assert result.rounds == 0
    assert len(kept_images(result.ledger, result.chosen, draw)[0]) == 0


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_the_account_adds_up(rate):
    result = run([12, 7], rate=rate, max_rounds=2)
    assert sum(c.candidates.total() for c in result.classes) == len(result.candidates)
    assert sum(kept(result)) == result.candidates.extra["reason"].count("accepted")
    good = sum(one.good.total() for one in result.classes)
    assert good == len(result.accepted) + result.candidates.extra["reason"].count("surplus")


def test_judges_see_each_shard_before_the_next_one_is_asked_for():
    events = []

    class Judge(FakeJudge):
        def judge(self, images, labels, ids, parents=None):
            events.append(("judged", int(labels[0])))
            return super().judge(images, labels, ids, parents)

    def sampled(shard):
        events.append(("drawn", shard.label))
        return draw(shard)

    fill_plan(
        ["a", "b"], [12, 8], [12, 8], 8, 1, lambda shards: ((s, sampled(s)) for s in shards),
        Judge(1.1), (RECIPE,), 0, 0.0, False,
    )  # fmt: skip
    assert events == [(what, k) for k in (0, 0, 1, 1) for what in ("drawn", "judged")]


def test_a_shard_that_was_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="class-0000-shard-000001 came where .*000000 was asked"):
        fill_plan(
            ["a"], [12], [12], 8, 1, lambda shards: ((s, draw(s)) for s in shards[::-1]),
            FakeJudge(1.1), (RECIPE,), 0, 0.0, False,
        )  # fmt: skip


@pytest.mark.parametrize("how", ["diverse", "k_centre"])
def test_the_choice_is_made_from_more_good_ones_than_are_kept(how):
    result = run([6], rate=1.1, how=how, times=3.0)
    assert result.classes[0].good.total() >= 18
    assert kept(result) == [6]
    features = result.classes[0].good_features()
    assert result.chosen.order[0].tolist() == choose(features, 6, how).tolist()
    # The rows of the store are the chosen ones, in the order of their indices.
    indices = sorted(result.chosen.order[0].tolist())
    assert result.accepted.extra["index"] == indices


def test_kept_images_come_best_first_and_a_cut_takes_the_best():
    result = run([6, 2], rate=1.1, how="diverse", times=2.0)
    images, labels = kept_images(result.ledger, result.chosen, draw)
    every = np.concatenate([draw(entry.shard) for entry in result.classes[0].entries])
    assert labels.tolist() == [0] * 6 + [1] * 2
    assert np.array_equal(images[:6], every[result.chosen.order[0]])
    fewer = result.chosen.cut([2, 0])
    again, labels = kept_images(result.ledger, fewer, draw)
    assert labels.tolist() == [0, 0]
    assert np.array_equal(again, images[:2])


def test_a_class_that_is_mostly_rejected_tries_the_other_recipes_and_keeps_the_best():
    calls, judge = [], FakeJudge(0.1, 0.9)
    other = Recipe("firmer", Path("g"), "h", SETTINGS)
    result = run(
        [60, 10], 0.0, max_rounds=6, calls=calls, recipes=(RECIPE, other, edits()),
        adapt_below=0.3, judge=judge,
    )  # fmt: skip
    assert {recipe for call in calls[:1] for *_, recipe in call} == {0}
    trials = [(number, recipe) for label, number, recipe in calls[1] if label == 0]
    assert trials == [(number, recipe) for recipe in (1, 2) for number in range(4)]
    assert {recipe for call in calls[2:] for *_, recipe in call if call} == {2}
    assert result.classes[0].recipe == 2
    assert kept(result) == [60, 10]
    rows = result.accepted
    modes = set(zip(rows.extra["mode"], rows.extra["generator"], strict=True))
    assert ("edit", "g") in modes
    for mode, parent in zip(rows.extra["mode"], rows.extra["parent_id"], strict=True):
        assert (parent != "") == (mode == "edit")


def test_the_first_recipe_is_kept_where_others_are_no_better_or_never_tried():
    calls = []
    run([60], 0.1, max_rounds=4, calls=calls, recipes=(RECIPE, edits(1)), adapt_below=0.3)
    assert {recipe for *_, recipe in calls[1]} == {1}
    assert {recipe for call in calls[2:] for *_, recipe in call} == {0}
    for changes in ({"adapt_below": 0.0}, {"adapt_below": 0.3, "rate": 0.9}):
        calls.clear()
        run([60], calls=calls, recipes=(RECIPE, edits(1)), **{"rate": 0.1, **changes})
        assert {recipe for call in calls for *_, recipe in call} == {0}


def test_a_recipe_has_to_be_better_by_more_than_chance():
    one = ClassLedger("a", 10, 10)
    one.candidates.update({0: 32, 1: 32})
    one.good.update({0: 6, 1: 8})
    assert best_recipe(one) == 0
    one.good[1] = 16
    assert best_recipe(one) == 1


def test_wide_features_are_narrowed_alike_whatever_comes_with_them():
    rows = np.random.default_rng(0).standard_normal((20, 300)).astype(np.float32)
    narrowed = narrow(rows)
    assert narrowed.shape == (20, 64)
    assert np.array_equal(narrow(rows[3:5]), narrowed[3:5])
    assert np.array_equal(narrow(rows[:, :10]), rows[:, :10])
    gaps = np.linalg.norm(rows[0] - rows[1:], axis=1)
    assert np.linalg.norm(narrowed[0] - narrowed[1:], axis=1) == pytest.approx(gaps, rel=0.35)


def test_memory_does_not_grow_with_the_images(tmp_path):
    def peak_bytes(images):
        folder = tmp_path / str(images)

        def sampled(shard):
            random = np.random.default_rng(shard.number)
            return random.integers(0, 256, (shard.size, 32, 32, 1), dtype=np.uint8)

        tracemalloc.start()
        ledger = fill_plan(
            ["a"], [images], [round(0.8 * images)], 50, 1,
            lambda shards: ((shard, sampled(shard)) for shard in shards),
            FakeJudge(1.1), (RECIPE,), 0, 0.0, False,
        )  # fmt: skip
        with StoreWriter(folder, ["a"], 32, "L", rows_per_shard=250) as writer:
            chosen = choose_kept(ledger, "first")
            write_out(
                ledger, chosen, (RECIPE,), 0, sampled, writer.add, lambda rows: None,
                lambda done: None,
            )  # fmt: skip
            info = writer.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert info.counts == {"train": {"a": images}}
        return peak

    peak_bytes(250)  # what is loaded once
    few, many = peak_bytes(1_000), peak_bytes(8_000)
    # Scores, reasons, ids and digests may grow, by some 300 bytes; the pixels alone are 1,024.
    assert many - few < 7_000 * 500
    assert len(read_samples(tmp_path / "8000")) == 8_000
