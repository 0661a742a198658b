import json
from pathlib import Path
from typing import Any, get_args

import pytest
from recipe.sets import plain_regime

from pipeline.downstream import grounds
from pipeline.errors import InputError
from pipeline.recipe import measured
from pipeline.recipe.expect import expect
from pipeline.recipe.facts import SetFacts
from pipeline.recipe.measured import REGIMES, Regime, read_regimes
from pipeline.sources import import_closure


def test_the_regimes_that_come_along_are_valid_and_say_what_was_measured() -> None:
    regimes = read_regimes()
    assert {one.name for one in regimes} >= {"digits", "fashion-mnist", "mnist"}
    first = regimes[0]
    assert (first.name, first.labelled, first.base, first.pool) == ("digits", 246, "pool", 831)
    assert (first.way, first.best_baseline) == ("mixed_strong", "pseudo_labels")
    assert (first.gain_points, first.gain_low, first.gain_high) == (-1.77, -2.92, -0.75)


def test_each_regime_is_expected_of_a_set_like_it() -> None:
    regimes = read_regimes()
    for one in regimes:
        facts = SetFacts(
            labelled=one.labelled,
            classes=one.classes,
            smallest=one.smallest,
            median=1.0,
            largest=one.largest,
            pool=one.pool,
            image_size_px=one.image_size_px,
            image_mode=one.image_mode,
        )
        found = expect(facts, one.base, regimes)
        assert found is not None
        assert one.name in found.regimes
        assert found.distance == 0.0
        assert found.gain_low <= one.gain_points <= found.gain_high


def test_decisions_are_those_of_a_verdict() -> None:
    assert get_args(measured.Decision) == get_args(grounds.Decision)


def test_a_regime_that_is_added_makes_no_stage_stale() -> None:
    closure = import_closure("pipeline.stages.prepare")
    assert "pipeline/recipe/measured.py" in closure
    assert REGIMES.name not in {Path(name).name for name in closure}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain_low": 2.5}, "gain_points must lie between gain_low and gain_high"),
        ({"tail_high": 3.0}, "tail_gain_points must lie between tail_low and tail_high"),
        ({"smallest": 50}, "labelled / classes must lie between smallest and largest"),
        ({"decision": "use", "gain_low": -0.1}, "decision is use, though gain_low lies below 0"),
        ({"decision": "use_tail_only"}, "decision"),
        ({"base": "pool"}, "pool is for base = pool, which needs one"),
        ({"way": "magic"}, "way"),
        ({"gain_points": "2"}, "gain_points"),
        ({"colour": "red"}, "colour"),
        ({"image_mode": "CMYK"}, "image_mode"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "regimes.json"
    path.write_text(json.dumps([plain_regime(**changes)]))
    with pytest.raises(InputError, match=message) as caught:
        read_regimes(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_none_and_a_name_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "regimes.json"
    with pytest.raises(InputError, match="not a list of measured regimes"):
        read_regimes(path)
    path.write_text("[")
    with pytest.raises(InputError, match="not a list of measured regimes"):
        read_regimes(path)
    path.write_text(json.dumps([plain_regime(), plain_regime()]))
    with pytest.raises(InputError, match="two regimes named 'stripes'; give each its own name"):
        read_regimes(path)
    missing = plain_regime()
    del missing["splits"]
    path.write_text(json.dumps([missing]))
    with pytest.raises(InputError, match="splits"):
        read_regimes(path)


def test_a_regime_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Regime.model_validate(plain_regime()).seeds = 9  # type: ignore[misc]
