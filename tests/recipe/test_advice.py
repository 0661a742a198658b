import json
from pathlib import Path
from typing import Any

import pytest
from recipe.sets import facts, regime

from pipeline.errors import InputError
from pipeline.recipe.advice import write_recipe
from pipeline.recipe.settings import Settings, read_settings

FASHION = {"labelled": 409, "pool": 57_000}


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the measured regimes, to be filled by the test."""
    found: list[Any] = []
    monkeypatch.setattr("pipeline.recipe.advice.read_regimes", lambda: tuple(found))
    return found


def test_a_gain_to_expect(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(regime(name="fashion-mnist-pool", **FASHION))
    assert write_recipe(tmp_path, "auto", facts(**FASHION)) == (
        "409 labelled images in 10 classes (10 to 100), 57,000 unlabelled ones, 16 px: "
        "pretrain.base = pool (139.4 unlabelled images for each labelled one); sets like it gained "
        "+2.0 points (+1.0 to +3.0) over the best baseline (fashion-mnist-pool)"
    )
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["expectation"]["gain_points"] == 2.0
    assert written["expectation"]["regimes"] == ["fashion-mnist-pool"]
    assert written["settings"] == {"base": "pool"}
    assert read_settings(tmp_path) == Settings(base="pool")


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_a_gain_that_may_be_none_is_not_promised(
    tmp_path: Path, regimes: list[Any], low: float
) -> None:
    regimes.append(regime(gain_points=low + 1, gain_low=low, gain_high=low + 2))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert said.endswith("(stripes): expect nothing; the comparison will say")


def test_a_set_that_is_like_no_other(tmp_path: Path, regimes: list[Any]) -> None:
    regimes.append(regime(image_size_px=128))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert "no measured regime is near this set" in said
    assert json.loads((tmp_path / "recipe.json").read_text())["expectation"] is None


def test_another_measurement_leaves_the_settings_as_they_are(
    tmp_path: Path, regimes: list[Any]
) -> None:
    written = []
    for _ in range(2):
        write_recipe(tmp_path, "auto", facts(**FASHION))
        written.append([(tmp_path / f"{one}.json").read_bytes() for one in ("recipe", "settings")])
        regimes.append(regime(**FASHION))
    assert written[0][0] != written[1][0]
    assert written[0][1] == written[1][1] == b'{\n  "base": "pool"\n}\n'


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
    regimes.append(regime(name="known", base="elsewhere"))
    said = write_recipe(tmp_path, "auto", facts())
    assert said is not None
    assert said.endswith(
        "From a base that knows such images already (pretrain.base = run, folder or hub), sets "
        "like it gained +2.0 points (+1.0 to +3.0) over the best baseline (known)"
    )
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["expectation_elsewhere"]["regimes"] == ["known"]
