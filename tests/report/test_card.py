from dataclasses import replace
from pathlib import Path

import yaml
from fake_stages import BASE, Fake
from report.fake_verdict import write_findings

from pipeline.data.store import StoreInfo
from pipeline.folders import read_manifest
from pipeline.params import ON_TOP_OF
from pipeline.report.card import NOT_HERE, CardFacts, data_card, escape_markdown
from pipeline.report.findings import (
    Pretraining,
    Training,
    base_caution,
    read_base_images,
    read_record,
)
from pipeline.report.synthesis import Synthesis
from pipeline.report.verdict import Verdict

HOSTILE = ("<script>alert(1)</script>", "a | b](x)", "---\nname: !!python/object")


def facts(root: Path, fake: Fake, share: float | None, **changes) -> CardFacts:
    folders = write_findings(root, fake, **changes)
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    counts = dict(zip(fake.classes, fake.training, strict=True))
    store = StoreInfo(tuple(fake.classes), 8, "L", {"train": counts, "test": counts}, "d" * 64)
    return CardFacts(
        name="my-data",
        store=store,
        synthetic_counts={fake.classes[0]: 1} if share else {},
        verdict=read_record(folders["evaluate"] / "verdict.json", Verdict),
        synthesis=read_record(folders["synthesize"] / "summary.json", Synthesis),
        pretraining=read_record(folders["pretrain"] / "summary.json", Pretraining),
        base_images=read_base_images(folders["pretrain"], folders["train"]),
        training=read_record(folders["train"] / "summary.json", Training),
        copy_limit=0.01,
        settings=manifests["synthesize"].params,  # type: ignore[union-attr]
        source=manifests["prepare"].params,  # type: ignore[union-attr]
        share=share,
    )


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_markup_is_escaped() -> None:
    assert escape_markdown("<b>&") == "&lt;b&gt;&amp;"
    assert escape_markdown("a|b\nc") == r"a\|b c"
    assert escape_markdown("[x](http://y)") == r"\[x\]\(http\:\/\/y\)"


def test_the_front_matter_holds_hostile_names_as_text(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(classes=HOSTILE), 0.5))
    matter = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    assert matter["replenish"]["classes"] == list(HOSTILE)
    assert matter["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"},
        {"split": "test", "path": "data/test-*.parquet"},
    ]
    body = card[card.index("\n---\n", 4) + 5 :]
    assert "<script" not in body
    assert "\n---\nname" not in body


def test_the_card_tells_the_verdict_and_how_images_were_made(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(), 0.5))
    assert "+3.10 points, 95 % interval +1.20 to +5.00" in card
    assert "| digit 0 | 5 | 1 | 0 | 6 |" in card  # 6 training rows, one of them synthetic
    assert "| **All** | **11** | **1** | **0** | **12** |" in card
    assert "| `disagrees` | 1 |" in card
    assert "| Guidance | `classifier-free guidance 1.5` |" in card
    assert "50 % of the draws are synthetic, as in the winning arm (mixed\\_50)" in card
    assert "best arm with synthetic images (mixed\\_50) used them: 50 % of draws" in card
    assert "WeightedRandomSampler" in card
    assert "Never test on synthetic rows" in card
    assert front_matter(card)["tags"] == ["replenish", "synthetic"]


def test_a_card_without_synthetic_rows_says_so(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(decision="do_not_use"), None))
    assert "No synthetic image is in it" in card
    assert "lineage of synthetic rows" not in card
    assert front_matter(card)["tags"] == ["replenish", "real"]


def test_a_card_that_asks_for_care_says_why(tmp_path: Path) -> None:
    reasons = ("Class <b>7</b> loses 3.2 points.", "Two classes have 5 test images.")
    fake = Fake(decision="use_with_care")
    card = data_card(facts(tmp_path, fake, 0.5, reasons=reasons, regressed=(1,)))
    assert "Decision: `use_with_care`." in card
    assert "Use them with care, because:\n\n- Class &lt;b&gt;7&lt;\\/b&gt; loses 3\\.2" in card
    assert "- Two classes have 5 test images" in card
    assert front_matter(card)["replenish"]["decision"] == "use_with_care"
    plain = data_card(facts(tmp_path / "plain", Fake(), 0.5))
    assert "because:" not in plain


def test_the_card_says_what_the_interval_covers(tmp_path: Path) -> None:
    made = facts(tmp_path, Fake(), 0.5, looks=(4, 8))
    card = data_card(made)
    assert "+3.10 points, 97.5 % interval" in card
    assert "one split of one dataset, one trained generator and 8 seeds" in card
    many = made.verdict.model_copy(update={"n": made.verdict.n.model_copy(update={"splits": 3})})
    assert "comes from 3 splits of one dataset" in data_card(replace(made, verdict=many))


def test_the_card_names_draws_of_the_winning_arm_that_are_not_in_the_dataset(
    tmp_path: Path,
) -> None:
    made = facts(tmp_path, Fake(), 0.25)
    assert "not in this dataset" not in data_card(made)
    won = made.verdict.model_copy(update={"best_synthetic": "mixed_base"})
    assert set(NOT_HERE) == set(ON_TOP_OF)
    assert (
        "25 % of the draws are synthetic, as in the winning arm (mixed\\_base), which draws images "
        "that the generator's base was trained on as often. These are not in this dataset"
    ) in data_card(replace(made, verdict=won))


def test_the_card_says_how_copying_was_watched(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path / "a", Fake(), 0.5))
    assert "at most 1 % of its samples were copies" in card
    assert "kept at step 1,500: 0.4 % are copies" in card
    assert "best at step 1,500, copies from step 2,000" in card
    unmeasured = data_card(facts(tmp_path / "b", Fake(copy_shares=(None,) * 5), 0.5))
    assert "kept at step 1,500: it was not measured" in unmeasured


def test_the_card_says_what_the_generator_started_from(tmp_path: Path) -> None:
    def card(name: str, **changes) -> str:
        return data_card(facts(tmp_path / name, Fake(**changes), 0.5))

    none = card("none")
    assert "started from nothing: its weights began at random" in none
    assert "trained on the real training images alone" in none
    assert front_matter(none)["replenish"]["base"] == "none"
    pool = card("pool", base="pool")
    assert "from a pool of 52 images, on which it was first trained without labels" in pool
    assert f"(digest `{BASE[:12]}`)" in pool
    assert "trained on the real training images, from a base" in pool
    assert front_matter(pool)["replenish"]["base_digest"] == BASE
    hub = card("hub", base="hub", source="someone/unet", base_beyond=None)
    assert r"from the base someone\/unet (the Hugging Face hub, digest" in hub
    assert "Which images the base has seen is not known" in hub
    same = card("run", base="run", source="earlier", base_beyond=0)
    assert "The base learned" not in same
    hostile = card("hostile", base="folder", source=HOSTILE[0], base_beyond=None)
    assert "<script" not in hostile[hostile.index("\n---\n", 4) :]


def test_the_card_says_of_a_base_what_the_page_says(tmp_path: Path) -> None:
    for number, fake in enumerate((Fake(base="pool"), Fake(base="run", source="earlier"))):
        made = facts(tmp_path / str(number), fake, 0.5)
        caution = base_caution(made.pretraining, made.base_images, made.verdict, 8, "L")
        assert caution.startswith("The base learned from 40 ")
        assert f"\n- {caution}\n" in data_card(made)
    # The store's image size counts: of the largest images the pool's arms see few.
    large = facts(tmp_path / "large", Fake(base="pool"), 0.5)
    large = replace(large, store=replace(large.store, image_size_px=4096, image_mode="RGB"))
    assert "looked at no more than 5 of them" in data_card(large)
    assert "The base learned" not in data_card(facts(tmp_path / "none", Fake(), 0.5))


def test_guidance_that_was_searched_for_is_told(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(searched=True), 0.5))
    assert "| Guidance | `autoguidance 2, found by search` |" in card
    assert "Guidance is the best of 3 settings, by kernel distance and coverage on" in card


def test_guidance_that_was_set_is_told_as_set(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(), 0.5))
    assert "| Guidance | `classifier-free guidance 1.5` |" in card
    assert "found by search" not in card


def test_a_refused_student_is_told(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(student=False), 0.5))
    assert "A student that samples in 4 steps was refused, so the network" in card
    assert "A student" not in data_card(facts(tmp_path / "none", Fake(), 0.5))


def test_a_plan_is_told_and_limits_say_which_side_they_are_of(tmp_path: Path) -> None:
    card = data_card(facts(tmp_path, Fake(planned=True), 0.5))
    assert "The number of images was planned: each class gets what its" in card
    assert "<own>" not in card
    assert "| `confidence` | at least 0.188 to 0.4, by class |" in card
    assert "| `class_ratio` | at most 1.2 |" in card
    assert "| `copy_distance` | at least 0.08 |" in card
    assert "was planned" not in data_card(facts(tmp_path / "none", Fake(), 0.5))
