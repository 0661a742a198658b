import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from recipe.sets import facts, regime

from pipeline.errors import InputError
from pipeline.recipe.advice import write_recipe
from pipeline.recipe.measured import read_regimes
from pipeline.recipe.settings import Settings, read_settings

FASHION = {"labelled": 409, "pool": 57_000}
GAIN = {"gain_points": 5.0, "gain_low": 4.0, "gain_high": 6.0}
DOCS = Path(__file__).parents[2] / "docs" / "recipe.md"


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the measured regimes, to be filled by the test."""
    found: list[Any] = []
    monkeypatch.setattr("pipeline.recipe.advice.read_regimes", lambda: tuple(found))
    return found


def test_a_gain_to_expect(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(regime(name="fashion-mnist-pool", decision="use", **GAIN, **FASHION))
    assert write_recipe(tmp_path, "auto", facts(**FASHION)) == (
        "409 training images in 10 classes (10 to 100), 57,000 unlabelled ones, 16 px: "
        "pretrain.base: auto = pool (139.4 unlabelled images for each training image); sets "
        "like it gained +5.0 points (+2.1 to +7.9), in the thinnest classes +4.0 (+0.6 to +7.4), "
        "over the best baseline (fashion-mnist-pool)"
    )
    assert json.loads((tmp_path / "recipe.json").read_text()) == {
        "recipe": "auto",
        "facts": asdict(facts(**FASHION)),
        "settings": {"base": "pool"},
        "reasons": {"base": "139.4 unlabelled images for each training image"},
    }
    assert read_settings(tmp_path) == Settings(base="pool")


@pytest.mark.parametrize(
    ("gain", "decision", "told"),
    [
        (0.0, "do_not_use", "expect nothing"),
        (2.0, "use", "perhaps"),
        (5.0, "do_not_use", "expect nothing"),
    ],
)
def test_a_gain_that_may_be_none_is_not_promised(
    tmp_path: Path, regimes: list[Any], gain: float, decision: str, told: str
) -> None:
    regimes.append(
        regime(gain_points=gain, gain_low=gain - 1, gain_high=gain + 1, decision=decision)
    )
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert said.endswith(f"(stripes): {told}; the comparison will say")


def test_of_equal_classes_none_is_called_thin(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(regime(smallest=40, largest=40))
    said = write_recipe(tmp_path, "auto", facts(smallest=40, median=40.0, largest=40))
    assert said is not None
    assert "sets like it gained +2.0 points" in said
    assert "thinnest" not in said
    uneven = write_recipe(tmp_path, "auto", facts(smallest=20, median=40.0, largest=40))
    assert uneven is not None
    assert "in the thinnest classes +4.0" in uneven


def test_a_set_that_is_like_no_other(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(regime(image_size_px=128))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert said.endswith(
        "; no measured regime is near this set: the comparison will say what it gains"
    )


def test_another_measurement_changes_the_words_and_nothing_that_is_written(
    tmp_path: Path, regimes: list[Any]
) -> None:
    said, written = [], []
    for _ in range(2):
        said.append(write_recipe(tmp_path, "auto", facts(**FASHION)))
        written.append({one.name: one.read_bytes() for one in tmp_path.iterdir()})
        regimes.append(regime(**FASHION))
    assert said[0] != said[1]
    assert written[0] == written[1]
    assert written[0]["settings.json"] == b'{\n  "base": "pool"\n}\n'


def test_the_line_in_the_docs_is_what_is_said(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(
        regime(
            name="NAME",
            labelled=246,
            smallest=6,
            largest=60,
            pool=831,
            image_size_px=8,
            decision="use",
            **GAIN,
        )
    )
    digits = facts(labelled=246, smallest=6, largest=60, pool=831, image_size_px=8)
    said = write_recipe(tmp_path, "auto", digits)
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert f" prepare: recipe: {said} " in text


def test_no_recipe_no_advice(tmp_path: Path) -> None:
    assert write_recipe(tmp_path, "none", facts(**FASHION)) is None
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert (set(written), written["recipe"]) == ({"recipe", "facts"}, "none")
    assert read_settings(tmp_path) == Settings(base="none")


@pytest.mark.parametrize("text", ["", "[]", '{"base": "hub"}', '{"bass": "none"}'])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"settings\.json: missing; run `replenish prepare"):
        read_settings(tmp_path)
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json: damaged; run `replenish prepare"):
        read_settings(tmp_path)


def test_a_base_from_elsewhere_is_hinted_at_where_it_gained(
    tmp_path: Path, regimes: list[Any]
) -> None:
    regimes.append(regime(gain_points=-1.0, gain_low=-2.0, gain_high=0.0))
    regimes.append(regime(name="known", base="elsewhere", decision="use_with_care", **GAIN))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert said.endswith(
        ": expect nothing; the comparison will say. "
        "From a base that knows such images already (pretrain.base: run, folder or hub) and whose "
        "own images are not at hand, sets "
        "like it gained +5.0 points (+2.1 to +7.9), in the thinnest classes +4.0 (+0.6 to +7.4), "
        "over the best baseline (known)"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"decision": "do_not_use", **GAIN},
        {"decision": "do_not_use", "gain_points": -2.0, "gain_low": -3.0, "gain_high": -1.0},
        {"decision": "use", "image_size_px": 128, **GAIN},
    ],
    ids=["refused", "a loss", "not near"],
)
def test_a_base_from_elsewhere_that_was_not_found_to_help_is_not_hinted_at(
    tmp_path: Path, regimes: list[Any], changes: dict[str, Any]
) -> None:
    regimes.append(regime(base="elsewhere", **changes))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert "From a base" not in said


def test_the_measured_regimes_tell_of_their_own_claim(tmp_path: Path) -> None:
    claim = next(one for one in read_regimes() if one.name == "mnist-5-base")
    few = facts(
        labelled=claim.labelled, smallest=5, largest=5, pool=0, image_size_px=claim.image_size_px
    )
    said = write_recipe(tmp_path, "auto", few)
    assert said is not None
    _, hint = said.split("From a base that knows such images already")
    assert "mnist-5-base" in hint
