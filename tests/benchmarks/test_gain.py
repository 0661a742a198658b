"""The benchmark of the gain: which regimes there are, and how its figures are put together."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

FILE = Path(__file__).parents[2] / "benchmarks" / "gain.py"


@pytest.fixture(scope="module")
def gain() -> Any:
    spec = importlib.util.spec_from_file_location("gain", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gain"] = module
    spec.loader.exec_module(module)
    return module


def run_folder(root: Path, seconds: float) -> Path:
    """Write what a finished run leaves that the benchmark reads."""
    verdict = {
        "decision": "use",
        "best_synthetic": "mixed_strong",
        "best_baseline": "cutmix",
        "gain_points": 2.0,
        "interval_points": [0.5, 3.5],
        "tail_gain_points": 4.0,
        "tail_interval_points": [1.0, 7.0],
        "arms": [
            {"name": "cutmix", "test_balanced_accuracy": {"mean": 0.8}, "gain_points": None},
            {"name": "mixed_strong", "test_balanced_accuracy": {"mean": 0.82}, "gain_points": 2.0},
        ],
        "learning_curve": {
            "points": [
                {"real_images": 75.0, "balanced_accuracy": 0.77},
                {"real_images": 100.0, "balanced_accuracy": 0.80},
            ]
        },
        "n": {"seeds": 4},
    }
    (root / "evaluate").mkdir(parents=True)
    (root / "evaluate" / "verdict.json").write_text(json.dumps(verdict))
    (root / "prepare").mkdir()
    (root / "prepare" / "recipe.json").write_text(json.dumps({"facts": {"labelled": 100}}))
    (root / "seconds.json").write_text(
        json.dumps({"train": seconds / 4, "evaluate": 0.75 * seconds})
    )
    return root


def test_a_regime_of_one_split_is_its_verdict(gain, tmp_path):
    found = gain.result("digits", [run_folder(tmp_path / "run", 600.0)])
    assert (found["gain_points"], found["gain_low"], found["gain_high"]) == (2.0, 0.5, 3.5)
    assert (found["way"], found["best_baseline"]) == ("mixed_strong", "cutmix")
    assert found["minutes"] == pytest.approx(10)
    assert found["minutes_per_point"] == pytest.approx(5)
    assert found["labels"] == {"images": 25.0, "points": pytest.approx(3.0)}
    assert found["facts"] == {"labelled": 100}


def test_the_claim_is_that_of_the_regime_whose_gain_is_surest(gain):
    def one(name: str, low: float) -> dict[str, Any]:
        return {
            "name": name,
            "gain_points": low + 1,
            "gain_low": low,
            "tail_gain_points": 0.0,
            "best_baseline": "real",
        }

    found = gain.summary([one("a", -1.0), one("b", 0.5), one("c", 0.25)])
    assert found["regime"] == "b"
    assert {"gain_points", "gain_low", "tail_gain_points", "best_baseline"} < set(found)
    assert [row["name"] for row in found["regimes"]] == ["a", "b", "c"]
    assert gain.summary([]) == {"regimes": []}


def test_regimes_have_names_of_their_own_and_valid_params(gain, tmp_path):
    names = [one.name for one in gain.REGIMES]
    assert len(set(names)) == len(names)
    assert gain.QUICK in names
    for one in gain.REGIMES:
        params = gain._params(one, tmp_path, 10, 2, ['pretrain.base="pool"', "train.steps=7"])
        assert (params.seed, params.prepare.seed, params.evaluate.seeds) == (2, 2, 10)
        assert (params.pretrain.base, params.train.steps) == ("pool", 7)


def test_seconds_of_a_stage_that_was_finished_before_stay(gain, tmp_path, monkeypatch):
    ran: list[str] = []
    monkeypatch.setattr(gain, "run_stage", lambda name, *_: ran.append(name))
    (tmp_path / "seconds.json").write_text(json.dumps({"train": 90.0}))
    for name in ("train", "evaluate"):
        gain._timed(name, None, tmp_path)
    assert ran == ["train", "evaluate"]
    assert gain._seconds(tmp_path) == pytest.approx(90.0, abs=1.0)


def test_root_keys_are_set_too(gain, tmp_path):
    params = gain._params(gain.REGIMES[0], None, 4, 0, ["recipe=none", "seed=5"])
    assert (params.recipe, params.seed) == ("none", 5)


def test_a_base_is_given_to_every_split_and_its_time_told(gain, tmp_path, monkeypatch):
    base = run_folder(tmp_path / "base", 120.0)
    given: list[Any] = []

    def run_stage(name: str, params: Any, folder: Path, _tracker: Any) -> None:
        if name == "prepare":
            given.append((params.seed, params.pretrain.base, params.pretrain.path))
            run_folder(folder, 600.0)

    monkeypatch.setattr(gain, "run_stage", run_stage)
    monkeypatch.setattr(gain, "pooled_verdict", lambda runs, *_: runs[0])
    monkeypatch.setattr(gain, "read_run", lambda run, verdict: verdict)
    regime = next(one for one in gain.REGIMES if one.base)
    found = gain.run_regime(regime, None, tmp_path / "runs", 4, 2, [], base)
    assert given == [(split, "run", str(base)) for split in range(2)]
    assert found["base_minutes"] == pytest.approx(2)
    assert (found["splits"], found["minutes"]) == (2, pytest.approx(10, abs=0.5))


def test_an_unknown_regime_is_named(gain):
    with pytest.raises(typer.BadParameter, match="magic: unknown regime; there are digits"):
        gain.main(only="magic", settings=None)
