"""The search for guidance against fake networks whose quality at each setting is known."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.data.images import flat_pixels, to_model
from pipeline.data.store import make_samples
from pipeline.diffusion.checkpoints import Generator, GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.synthesis import measures
from pipeline.synthesis.search import (
    INTERVAL,
    NO_GUIDANCE,
    WEIGHTS,
    candidates,
    pick_neighbours,
    search_guidance,
    write_search,
)
from pipeline.tracking.tracker import NullTracker

CPU = torch.device("cpu")
BASE = SamplerSettings("dpmsolver++", 20)
Y, X = np.mgrid[:8, :8]
WAVES = np.stack([np.sin(1.5 * X), np.sin(1.5 * Y), np.sin(X + Y)])
LEVEL_BEST = Guidance(2.0, *INTERVAL)


def images(labels, noise, blend=0.0, spread=0.4):
    """Stripes whose direction is their label; `blend` of them is the next class's."""
    waves = (1 - blend) * WAVES[labels] + blend * WAVES[(labels + 1) % 3]
    return ((waves + spread * noise) * 60 + 128).clip(0, 255).astype(np.uint8)[..., None]


def rows(counts, seed, split="train"):
    labels = np.repeat(np.arange(3), counts)
    noise = np.random.default_rng(seed).normal(0, 1, (len(labels), 8, 8))
    return make_samples(images(labels, noise), labels, split, "real")


TRAINING, VALIDATION = rows((40, 30, 20), 0), rows((40, 30, 20), 1, "validation")


@pytest.fixture
def generator(monkeypatch):
    """Return `become(quality, **changes)`: a generator whose images at a setting are blended so."""
    drawn = Counter()

    def become(quality, null_class=True, weaker=True, spread=None):
        def sample(model, spec, labels, generators, settings, device, weaker):
            drawn[settings.guidance] += len(labels)
            noise = torch.stack([torch.randn((8, 8), generator=one) for one in generators])
            blend = quality(settings.guidance)
            wide = 0.4 if spread is None else spread(settings.guidance)
            return to_model(images(labels.numpy(), noise.numpy(), blend, wide))

        monkeypatch.setattr(measures, "sample", sample)
        spec = GeneratorSpec(
            ("a", "b", "c"), 8, "L", "cosine", "velocity", False, "", None, null_class
        )
        guide = object() if weaker else None
        return Generator(spec, object(), "digest", guide)

    become.drawn = drawn
    return become


def search(found, validation=VALIDATION, count=256, seed=0, tracker=None, embed=flat_pixels):
    return search_guidance(
        found, TRAINING, validation, embed, BASE, count, seed, CPU, tracker or NullTracker()
    )


def planted(best, good=0.0, bad=0.3):
    return lambda guidance: good if guidance == best else bad


@pytest.mark.parametrize("best", candidates(True, True)[1:], ids=lambda g: g.describe())
def test_the_planted_best_is_found(generator, best):
    result = search(generator(planted(best)))
    assert result.guidance == best
    (chosen,) = [row for row in result.rows if row.chosen]
    assert chosen.guidance == best.describe()
    assert chosen.kernel_distance < min(
        row.kernel_distance for row in result.rows if not row.chosen
    )
    assert (chosen.round, chosen.images) == (3, 256)
    assert "without guidance" in result.reason


def test_no_guidance_is_found_where_it_is_best(generator, recording_tracker):
    result = search(generator(planted(NO_GUIDANCE)), tracker=recording_tracker)
    assert result.guidance == NO_GUIDANCE
    assert "no setting that was tried is clearly better" in result.reason
    assert recording_tracker.notes == [f"synthesize: no guidance: {result.reason}"]


def test_of_equals_the_cheapest_then_the_weakest_is_taken(generator):
    assert search(generator(lambda guidance: 0.1)).guidance == NO_GUIDANCE
    guided = generator(lambda guidance: 0.5 if guidance == NO_GUIDANCE else 0.1)
    # Guidance in an interval costs less than at all levels.
    assert search(guided).guidance == Guidance(WEIGHTS[0], *INTERVAL)
    everywhere = generator(lambda guidance: 0.1 if guidance.guide == "weaker" else 0.5)
    assert search(everywhere).guidance == Guidance(WEIGHTS[0], guide="weaker")


def test_a_gain_within_chance_is_no_reason_for_guidance(generator):
    # A hundredth of a class's stripes: seen by the mean, not by 90 rows.
    close = generator(lambda guidance: 0.0 if guidance == LEVEL_BEST else 0.01)
    assert search(close).guidance == NO_GUIDANCE


def test_what_has_lost_its_variety_is_out_however_near_it_is(generator):
    # In few dimensions: in many, the mean image lies in every ball.
    narrow = generator(
        lambda guidance: 0.0 if guidance.weight == 3.0 else 0.5,
        spread=lambda guidance: 0.05 if guidance.weight == 3.0 else 0.4,
    )
    result = search(narrow, embed=lambda images: flat_pixels(images)[:, [0, 9, 18]])
    assert result.guidance.weight < 3.0
    last = [row for row in result.rows if row.round == 1]
    strong = [row for row in last if row.weight == 3.0]
    assert strong
    others = [row for row in last if row.weight != 3.0]
    assert min(row.kernel_distance for row in others) > max(row.kernel_distance for row in strong)
    assert min(row.coverage for row in others) > max(row.coverage for row in strong)


@pytest.mark.parametrize(
    ("null_class", "weaker", "tried", "total"),
    [
        (True, True, 10, 10 * 64 + 5 * 64 + 3 * 128),
        (True, False, 7, 7 * 64 + 4 * 64 + 2 * 128),
        (False, True, 4, 4 * 64 + 2 * 64 + 2 * 128),
    ],
)
def test_halving_bounds_the_samples(generator, recording_tracker, null_class, weaker, tried, total):
    found = generator(planted(LEVEL_BEST), null_class, weaker)
    result = search(found, tracker=recording_tracker)
    assert sum(generator.drawn.values()) == total
    assert max(generator.drawn.values()) == generator.drawn[NO_GUIDANCE] == 256
    assert recording_tracker.progress_calls[-1] == ("guidance", total, total, "images")
    assert len(result.rows) == tried <= 10
    rounds = Counter(row.round for row in result.rows)
    assert {row.images for row in result.rows if row.round == 1} <= {64}
    assert sum(rounds.values()) == tried
    assert {g for g in generator.drawn if g.guide == "weaker"} == set(
        candidates(null_class, weaker)
    ) & {Guidance(w, guide="weaker") for w in WEIGHTS}


def test_the_same_call_gives_the_same_result_and_all_start_from_the_same_noise(
    generator, monkeypatch
):
    found = generator(planted(LEVEL_BEST, 0.1, 0.15))
    first = search(found)
    torch.rand(3)
    np.random.default_rng().random()
    assert search(found) == first
    assert search(found, seed=1).rows != first.rows
    started = {}

    def sample(model, spec, labels, generators, settings, device, weaker):
        noise = [torch.rand(1, generator=one).item() for one in generators]
        started.setdefault(settings.guidance, []).extend(zip(labels.tolist(), noise, strict=True))
        return torch.zeros(len(labels), 1, 8, 8)

    monkeypatch.setattr(measures, "sample", sample)
    search(found)
    longest = started[NO_GUIDANCE]
    assert len(set(longest)) == 256
    assert all(own == longest[: len(own)] for own in started.values())
    shares = np.bincount([label for label, _ in longest]) / 256
    assert shares == pytest.approx([4 / 9, 3 / 9, 2 / 9], abs=0.03)


@pytest.mark.parametrize("null_class", [True, False])
@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 1)])
def test_too_few_validation_rows_fall_back_to_the_usual(generator, counts, null_class):
    found = generator(planted(LEVEL_BEST), null_class)
    few = VALIDATION.take(np.repeat([0, 40, 70], counts))
    result = search(found, few)
    assert result.guidance == (Guidance(1.5) if null_class else NO_GUIDANCE)
    assert (result.rows, result.neighbours) == ((), None)
    assert f"no class has two of the {sum(counts)} validation images" in result.reason
    assert not generator.drawn


def test_two_rows_of_a_class_are_enough_to_try(generator):
    result = search(generator(planted(LEVEL_BEST)), VALIDATION.take([0, 1, 40, 70]))
    assert len(result.rows) == 10
    assert all(math.isfinite(row.kernel_distance + row.coverage) for row in result.rows)


def test_where_the_first_images_hold_no_class_twice_the_first_round_is_left_out(generator):
    one_each = rows((12, 12, 12), 3, "validation")
    result = search(generator(planted(LEVEL_BEST)), one_each, count=8)
    assert max(row.images for row in result.rows) == 8
    assert result.guidance in candidates(True, True)


def test_with_nothing_to_try_nothing_is_drawn(generator, recording_tracker):
    found = generator(planted(LEVEL_BEST), null_class=False, weaker=False)
    result = search(found, tracker=recording_tracker)
    assert (result.guidance, result.rows) == (NO_GUIDANCE, ())
    assert not generator.drawn
    assert "nothing to try" in recording_tracker.notes[0]


def test_copies_are_counted_and_decide_nothing(generator, monkeypatch):
    found = generator(planted(LEVEL_BEST))
    inner = measures.sample

    def sample(model, spec, labels, generators, settings, device, weaker):
        if settings.guidance == LEVEL_BEST:
            first = np.searchsorted(TRAINING.labels, labels.numpy())
            return to_model(TRAINING.images[first])
        return inner(model, spec, labels, generators, settings, device, weaker)

    monkeypatch.setattr(measures, "sample", sample)
    result = search(found)
    shares = {row.guidance: row.copy_share for row in result.rows}
    assert shares.pop(LEVEL_BEST.describe()) == 1.0
    assert set(shares.values()) == {0.0}


def test_the_number_of_neighbours_leaves_room_on_both_sides():
    assert [pick_neighbours(100, m) for m in (10, 100, 300, 1000, 5000)] == [5, 4, 2, 1, 1]
    rng = np.random.default_rng(0)
    for n, m in ((60, 60), (60, 240)):
        k = pick_neighbours(n, m)
        labels = np.zeros(n, dtype=np.int64), np.zeros(m, dtype=np.int64)
        shares = [
            measures.class_covered(
                rng.normal(size=(n, 3)), labels[0], rng.normal(size=(m, 3)), labels[1], k
            ).mean()
            for _ in range(20)
        ]
        assert 0.85 < np.mean(shares) < 0.98


def test_the_table_as_csv(generator, tmp_path):
    result = search(generator(planted(LEVEL_BEST)))
    write_search(tmp_path / "search.csv", result)
    with (tmp_path / "search.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 10
    assert [row["guidance"] for row in table if row["chosen"] == "1"] == [LEVEL_BEST.describe()]
    by_name = {row["guidance"]: row for row in table}
    assert by_name["classifier-free guidance 2"]["high"] == ""
    assert by_name["classifier-free guidance 2 at sigma 0.3 to 3"]["high"] == "3"
    assert float(by_name["no guidance"]["kernel_distance"]) == pytest.approx(
        result.rows[0].kernel_distance, rel=1e-5
    )
    assert by_name["no guidance"]["evaluations"] == "20"
    assert by_name["autoguidance 2"]["evaluations"] == "40"
    write_search(
        tmp_path / "search.csv", search(generator(planted(LEVEL_BEST)), VALIDATION.take([]))
    )
    assert len((tmp_path / "search.csv").read_text().splitlines()) == 1


def test_real_networks_are_searched():
    model, weaker = (build_unet(8, "L", 3, Preset(8, 1), seed).eval() for seed in (0, 1))
    spec = GeneratorSpec(("a", "b", "c"), 8, "L", "cosine", "velocity", False, "", None)
    found = Generator(spec, model, "digest", weaker)
    short = SamplerSettings("dpmsolver++", 2)
    result = search_guidance(
        found, TRAINING, VALIDATION, flat_pixels, short, 32, 0, CPU, NullTracker()
    )
    assert len(result.rows) == 10
    assert len({row.kernel_distance for row in result.rows}) > 7
