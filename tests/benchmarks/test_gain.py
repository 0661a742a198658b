"""The benchmark of the gain: which regimes there are, and how its figures are put together."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from pipeline.errors import StageError
from pipeline.params import Imbalance
from pipeline.recipe.measured import read_regimes
from pipeline.stages.train import MINIMUM_CLASS_IMAGES

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sets() -> Any:
    return load("gain_sets")


@pytest.fixture(scope="module")
def results(sets: Any) -> Any:
    return load("gain_results")


@pytest.fixture(scope="module")
def gain(sets: Any, results: Any) -> Any:
    return load("gain")


FACTS = {
    "classes": 10,
    "image_mode": "L",
    "image_size_px": 16,
    "labelled": 100,
    "largest": 10,
    "median": 10.0,
    "pool": 5000,
    "smallest": 10,
}


def run_folder(root: Path, seconds: float, base: str = "pool") -> Path:
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
    recipe = {"facts": FACTS, "settings": {"base": "pool"}}
    (root / "prepare" / "recipe.json").write_text(json.dumps(recipe))
    (root / "pretrain").mkdir()
    (root / "pretrain" / "summary.json").write_text(json.dumps({"base": base}))
    taken = {"train": seconds / 4, "evaluate": 0.75 * seconds}
    (root / "seconds.json").write_text(
        json.dumps({stage: {"digest": "a", "seconds": one} for stage, one in taken.items()})
    )
    return root


def test_a_regime_of_one_split_is_its_verdict(gain, tmp_path):
    found = gain.result(gain.REGIMES[0], [run_folder(tmp_path / "run", 600.0)])
    assert (found["gain_points"], found["gain_low"], found["gain_high"]) == (2.0, 0.5, 3.5)
    assert (found["way"], found["best_baseline"]) == ("mixed_strong", "cutmix")
    assert found["minutes"] == pytest.approx(10)
    assert found["minutes_per_point"] == pytest.approx(5)
    assert found["labels"] == {"images": 25.0, "points": pytest.approx(3.0)}
    assert found["facts"] == FACTS
    assert found["images_of_base"] is False


def test_the_claim_is_that_of_the_regime_whose_gain_is_surest(gain):
    def one(name: str, low: float, decision: str = "do_not_use") -> dict[str, Any]:
        return {
            "name": name,
            "decision": decision,
            "gain_points": low + 1,
            "gain_low": low,
            "tail_gain_points": 0.0,
            "best_baseline": "real",
            "one_collection": name == "half of its own",
        }

    found = gain.summary([one("a", -1.0), one("b", 0.5), one("c", 0.25)])
    assert found["regime"] == "b"
    assert {"gain_points", "gain_low", "tail_gain_points", "best_baseline"} < set(found)
    assert [row["name"] for row in found["regimes"]] == ["a", "b", "c"]
    assert gain.summary([]) == {"regimes": []}
    found = gain.summary([one("a", 1.0), one("b", 0.5, "use")])
    assert (found["regime"], found["decision"]) == ("b", "use")
    found = gain.summary([one("half of its own", 9.0, "use"), one("b", 0.5, "use")])
    assert found["regime"] == "b"


def test_regimes_have_names_of_their_own_and_valid_params(gain, tmp_path):
    names = [one.name for one in gain.REGIMES]
    assert len(set(names)) == len(names)
    assert set(gain.QUICK) <= set(names)
    for one in gain.REGIMES:
        params = gain._params(one, tmp_path, 10, 2, ['pretrain.base="pool"', "train.steps=7"])
        assert (params.seed, params.prepare.seed, params.evaluate.seeds) == (2, 2, 10)
        assert (params.pretrain.base, params.train.steps) == ("pool", 7)
        thinned = params.prepare.imbalance
        assert not isinstance(thinned, Imbalance) or thinned.min >= MINIMUM_CLASS_IMAGES


def test_seconds_of_a_stage_that_was_finished_before_stay(gain, results, tmp_path, monkeypatch):
    digests = {"train": "same", "evaluate": "other"}
    monkeypatch.setattr(gain, "run_stage", lambda *_: None)
    monkeypatch.setattr(gain, "_digest", lambda folder: digests[folder.name])
    kept = {name: {"digest": "same", "seconds": 90.0} for name in digests}
    (tmp_path / "seconds.json").write_text(json.dumps(kept))
    clock = iter([0.0, 5.0, 10.0, 17.0])
    monkeypatch.setattr(gain.time, "monotonic", lambda: next(clock))
    for name in digests:
        gain._timed(name, None, tmp_path)
    # The comparison was done anew, by other params: its own seconds count.
    assert results.seconds_of(tmp_path) == 90.0 + 7.0


def test_a_digest_is_that_of_a_finished_stage(gain, tmp_path):
    with pytest.raises(StageError, match="no manifest"):
        gain._digest(tmp_path)


def test_what_was_found_becomes_a_regime_of_the_recipe(gain, tmp_path):
    path = tmp_path / "regimes.json"
    regime = replace(gain.REGIMES[0], name="pool-of-its-own")
    first = gain.result(regime, [run_folder(tmp_path / "run", 600.0)])
    gain.add_regimes(path, [first])
    gain.add_regimes(path, [{**first, "name": "elsewhere", "base": "elsewhere"}])
    gain.add_regimes(path, [{**first, "gain_points": 3.0}])
    weaker = {**first, "gain_points": 1.0, "seeds": 3}
    assert gain.add_regimes(path, [weaker]) == ["pool-of-its-own"]
    gain.add_regimes(path, [{**first, "name": "seen-by-a-baseline", "images_of_base": True}])
    gain.add_regimes(path, [{**first, "name": "half-of-its-own", "one_collection": True}])
    pool, elsewhere = read_regimes(path)
    assert (pool.name, pool.base, pool.pool, pool.gain_points) == (
        "pool-of-its-own",
        "pool",
        5000,
        3.0,
    )
    assert (elsewhere.base, elsewhere.pool, elsewhere.labelled) == ("elsewhere", 0, 100)


def write_idx(files):
    """Three training and three test images in IDX files; a corner tells which image it is."""
    files.mkdir()
    for first, name in enumerate(("train", "t10k")):
        images = np.zeros((3, 28, 28), dtype=np.uint8)
        images[:, 4, 4] = 255
        images[:, 0, 0] = np.arange(3) + 10 * first
        head = bytes([0, 0, 8, 3]) + b"".join(int(n).to_bytes(4, "big") for n in images.shape)
        (files / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big") + bytes([0, 1, 2])
        (files / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return files


def test_a_base_of_the_other_half_shares_no_image_and_sees_no_test(sets, tmp_path):
    files = write_idx(tmp_path / "idx")
    regime = next(one for one in sets.REGIMES if one.name == "fashion-100-to-10-base")
    found = []
    for one in (sets.BASES["fashion"], regime):
        with np.load(sets.source_path(one, {"fashion": files}, tmp_path / "work")) as arrays:
            found.append([arrays[name].tolist() for name in ("labels", "splits")])
            found[-1].insert(0, arrays["images"][:, 0, 0].tolist())
    assert found[0] == [[0, 2], [0, 2], ["", ""]]
    assert found[1] == [[1, 10, 11, 12], [1, 0, 1, 2], ["", "test", "test", "test"]]
    assert sets.files_needed(regime) == {"fashion"}
    with pytest.raises(typer.BadParameter, match="no IDX files of train"):
        sets.half_of(tmp_path, tmp_path, "fashion", "base")


def test_mnist_is_cut_to_its_digits_and_becomes_a_pool(sets, tmp_path):
    files = write_idx(tmp_path / "idx")
    with np.load(sets.cut_mnist(files, tmp_path)) as arrays:
        assert arrays["images"].shape == (6, 20, 20)
        assert (arrays["images"][:, 0, 0] == 255).all()
        assert arrays["splits"].tolist() == ["", "", "", "test", "test", "test"]
    folder = sets.pool_folder(sets.BASES["mnist"], {"mnist": files}, tmp_path)
    assert sorted(one.name for one in folder.iterdir()) == [f"{n:05d}.png" for n in range(6)]
    assert sets.pool_folder(sets.BASES["mnist"], {"mnist": files}, tmp_path) == folder


def test_emoji_are_drawn_on_white_and_grouped_by_sign(sets, tmp_path):
    signs = [
        {"image": "a.png", "category": "Flags", "unified": "A"},
        {"image": "b.png", "category": "Component", "unified": "B"},
        {"image": "c.png", "category": "Objects", "unified": "D"},
        {"image": "missing.png", "category": "Flags", "unified": "C"},
    ]
    for maker in ("apple", "facebook", "google", "twitter"):
        folder = tmp_path / f"emoji-datasource-{maker}"
        (folder / "img" / maker / "64").mkdir(parents=True)
        (folder / "emoji.json").write_text(json.dumps(signs))
        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(folder / "img" / maker / "64" / name)
    with np.load(sets.emoji(tmp_path, tmp_path / "work")) as arrays:
        assert arrays["images"].shape == (8, 32, 32, 3)
        assert (arrays["images"] == 255).all()
        assert arrays["labels"].tolist() == ["Flags", "Objects"] * 4
        assert arrays["groups"].tolist() == ["A", "D"] * 4
    with pytest.raises(typer.BadParameter, match="unpack the npm package there"):
        sets.emoji(tmp_path / "img", tmp_path / "other")


def test_a_base_of_emoji_shares_neither_signs_nor_makers_with_its_regime(sets, tmp_path):
    makers = ("apple", "facebook", "google", "twitter")
    signs = [
        {"image": f"{n}.png", "category": ("Flags", "Objects")[n % 2], "unified": f"1F{n:03X}"}
        for n in range(12)
    ]
    for shade, maker in enumerate(makers):
        folder = tmp_path / f"emoji-datasource-{maker}"
        (folder / "img" / maker / "64").mkdir(parents=True)
        (folder / "emoji.json").write_text(json.dumps(signs))
        for sign in signs:
            drawing = Image.new("RGBA", (64, 64), (shade, 0, 0, 255))
            drawing.save(folder / "img" / maker / "64" / sign["image"])
    regime = next(one for one in sets.REGIMES if one.name == "emoji-25-base")
    folders = {"emoji": tmp_path}
    found = {}
    for one in (sets.BASES["emoji"], regime):
        with np.load(sets.source_path(one, folders, tmp_path / "work")) as arrays:
            shades = set(arrays["images"][:, 0, 0, 0].tolist())
            found[one.files] = ({makers[shade] for shade in shades}, set(arrays["groups"].tolist()))
    assert found["emoji-base"][0] == {"apple", "google"}
    assert found["emoji-beside"][0] == {"facebook", "twitter"}
    assert found["emoji-base"][1] | found["emoji-beside"][1] == {one["unified"] for one in signs}
    assert not found["emoji-base"][1] & found["emoji-beside"][1]
    assert sets.files_needed(regime) == {"emoji"}


def test_a_named_regime_without_its_files_says_which(gain):
    with pytest.raises(typer.BadParameter, match="digits-5-base: give --mnist DIR"):
        gain.main(only="digits-5-base", settings=None)


def test_root_keys_are_set_too(gain, tmp_path):
    params = gain._params(gain.REGIMES[0], None, 4, 0, ["recipe=none", "seed=5"])
    assert (params.recipe, params.seed) == ("none", 5)


def test_a_base_is_given_to_every_split_and_its_time_told(gain, results, tmp_path, monkeypatch):
    base = run_folder(tmp_path / "base", 120.0)
    given: list[Any] = []

    def run_stage(name: str, params: Any, folder: Path, _tracker: Any) -> None:
        if name == "prepare":
            given.append((params.seed, params.pretrain.base, params.pretrain.path))
            run_folder(folder, 600.0, base="run")

    monkeypatch.setattr(gain, "run_stage", run_stage)
    monkeypatch.setattr(gain, "_digest", lambda folder: folder.name)
    monkeypatch.setattr(results, "pooled_verdict", lambda runs, *_: runs[0])
    monkeypatch.setattr(results, "read_run", lambda run, verdict: verdict)
    regime = next(one for one in gain.REGIMES if one.base and not one.pool)
    found = gain.run_regime(regime, None, tmp_path / "runs", 4, 2, [], base)
    # The weights alone: its images are not in that part of the run.
    assert given == [(split, "run", str(base / "train")) for split in (100, 101)]
    assert (found["base"], found["base_minutes"]) == ("elsewhere", pytest.approx(2))
    assert found["splits"] == 2
    given.clear()
    regime = next(one for one in gain.REGIMES if one.images)
    gain.run_regime(regime, None, tmp_path / "more", 4, 1, [], base)
    assert given == [(100, "run", str(base))]


@pytest.mark.parametrize(
    ("given", "name", "base"),
    [
        (("mnist", "fashion"), "mnist-5-base", "digits-hasty"),
        (("fashion",), "fashion-5-base", "fashion-hasty"),
        (("emoji",), "digits", None),
        ((), "digits", None),
    ],
)
def test_quick_does_the_claim_where_its_files_are_given(
    gain, tmp_path, monkeypatch, given, name, base
):
    ran: list[Any] = []
    bases: list[Any] = []

    def train_base(base: Any, *_: Any) -> Path:
        bases.append((base.name, base.train))
        return tmp_path / "base"

    monkeypatch.setattr(gain, "train_base", train_base)
    monkeypatch.setattr(gain, "source_path", lambda *_: None)
    monkeypatch.setattr(
        gain,
        "run_regime",
        lambda regime, *rest: ran.append((regime.name, rest[2:4])),
    )
    monkeypatch.setattr(gain, "summary", lambda found: {"regimes": len(found)})
    folders = {one: tmp_path if one in given else None for one in ("mnist", "fashion", "emoji")}
    gain.main(quick=True, **folders, settings=None)
    assert ran == [(name, (4, 1))]
    assert bases == ([] if base is None else [(base, {"steps": 1500, "checks": 3})])


@pytest.mark.parametrize("more", [{"quick": True}, {"settings": ["train.steps=7"]}])
def test_the_recipe_learns_from_the_shipped_defaults_alone(gain, tmp_path, more):
    with pytest.raises(typer.BadParameter, match="leave out --quick and --set"):
        gain.main(regimes=tmp_path / "regimes.json", **{"settings": None, **more})


def test_an_unknown_regime_is_named(gain):
    with pytest.raises(typer.BadParameter, match="magic: unknown regime; there are digits"):
        gain.main(only="magic", settings=None)
