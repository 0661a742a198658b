import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.data.store import make_samples
from pipeline.data.store_writer import write_store
from pipeline.downstream.compare import SplitOutcomes, count_units
from pipeline.downstream.pooled import RunPredictions, pooled_verdict, read_run
from pipeline.errors import InputError
from pipeline.folders import write_manifest

CLASSES = ("a", "b")
EACH, SEEDS = 60, 3
ROLES = {"real": "baseline", "mixed": "synthetic"}


def finished(
    root: Path,
    accuracy: dict[str, float],
    run: int,
    names=CLASSES,
    roles=ROLES,
    trained: int | None = None,
    groups: list[str] | None = None,
) -> tuple[Path, dict]:
    """Write what a run leaves: each arm is right with the given chance."""
    random = np.random.default_rng(run)
    images = np.random.default_rng(run).integers(0, 255, (2 * EACH, 8, 8, 1), dtype=np.uint8)
    store = make_samples(images, np.repeat([0, 1], EACH), "test", "real", groups)
    rows = {"arm": [], "seed": [], "split": [], "id": [], "label": [], "predicted": []}
    for split in ("validation", "test"):
        labels = np.repeat([0, 1], EACH)
        for arm in roles:
            for seed in range(SEEDS):
                right = random.random(2 * EACH) < accuracy[arm]
                rows["arm"] += [arm] * 2 * EACH
                rows["seed"] += [seed] * 2 * EACH
                rows["split"] += [split] * 2 * EACH
                rows["id"] += store.ids
                rows["label"] += labels.tolist()
                rows["predicted"] += np.where(right, labels, 1 - labels).tolist()
    artifacts = root / f"run-{run}"
    write_store(artifacts / "prepare" / "dataset", store, names, 8, "L")
    (artifacts / "evaluate").mkdir()
    pq.write_table(pa.table(rows), artifacts / "evaluate" / "predictions.parquet")
    (artifacts / "synthesize").mkdir()
    inputs = {"train": f"trained {run if trained is None else trained}"}
    write_manifest(artifacts / "synthesize", "synthesize", "key", {}, inputs)
    verdict = {
        "arms": [{"name": name, "role": role} for name, role in roles.items()],
        "per_class": [{"training_images": 9}, {"training_images": 3}],
        "n": {"synthetic": 5},
    }
    return artifacts, verdict


def pooled(root: Path, mixed: float, runs: int = 4) -> dict:
    read = [read_run(*finished(root, {"real": 0.6, "mixed": mixed}, run)) for run in range(runs)]
    return pooled_verdict(read, 500, 0.95, 2.0, seed=0)


def test_a_clear_gain_over_several_runs_is_used(tmp_path: Path) -> None:
    verdict = pooled(tmp_path, 0.95)
    assert verdict["decision"] == "use_with_care"  # its twin, real_balanced, took no part
    assert "add real_balanced to evaluate.arms" in verdict["reasons"][0]
    assert verdict["sentence"].endswith("With care: it was not compared with real_balanced.")
    assert verdict["gain_points"] == pytest.approx(35, abs=5)
    low, high = verdict["interval_points"]
    assert 20 < low < verdict["gain_points"] < high < 50
    each = [one["gain_points"] for one in verdict["runs"]]
    assert np.mean(each) == pytest.approx(verdict["gain_points"])
    assert verdict["n"]["splits"] == 4
    json.dumps(verdict)


@pytest.mark.parametrize(
    ("baseline", "synthetic", "decision"),
    [
        ("real_augmented", "mixed", "use"),
        ("base_images", "mixed_base", "use_with_care"),
        ("pseudo_labels_soft", "mixed_pool", "use_with_care"),
    ],
)
def test_a_winner_that_sees_other_images_too_is_used_with_care(
    tmp_path: Path, baseline: str, synthetic: str, decision: str
) -> None:
    accuracy = {baseline: 0.6, synthetic: 0.95}
    roles = {baseline: "baseline", synthetic: "synthetic"}
    read = [read_run(*finished(tmp_path, accuracy, run, roles=roles)) for run in range(4)]
    assert pooled_verdict(read, 500, 0.95, 2.0, seed=0)["decision"] == decision


def losing(run: int, training: tuple[int, ...]) -> RunPredictions:
    """Return a run whose synthetic arm gains in two classes and loses in the first."""
    labels = np.repeat([0, 1, 2], EACH)
    random = np.random.default_rng(run)
    chances = {"real_augmented": (0.9, 0.4, 0.4), "mixed": (0.6, 0.95, 0.95)}
    right = {
        name: random.random((SEEDS, 3 * EACH)) < np.asarray(chance)[labels]
        for name, chance in chances.items()
    }
    ids = np.asarray([f"{run}-{i}" for i in range(3 * EACH)])
    roles = {"real_augmented": "baseline", "mixed": "synthetic"}
    test = SplitOutcomes(labels, ids, right)
    return RunPredictions(
        f"run-{run}", roles, ("a", "b", "c"), training, right, labels, test, 5, str(run), str(run)
    )


def test_a_class_that_loses_in_all_runs_asks_for_care() -> None:
    def over(training: tuple[int, ...], margin_points: float = 2.0) -> dict:
        runs = [losing(run, training) for run in range(4)]
        return pooled_verdict(runs, 500, 0.95, margin_points, seed=0)

    verdict = over((9, 9, 9))
    assert verdict["decision"] == "use_with_care"
    assert verdict["sentence"].endswith("real_augmented. With care: a got worse.")
    assert verdict["reasons"] == ["a: surely worse, by more than 2 points of recall."]
    assert [one["regressed"] for one in verdict["per_class"]] == [True, False, False]
    assert over((3, 9, 9))["decision"] == "use_with_care"  # a thin one no less
    assert over((9, 9, 9), margin_points=80.0)["decision"] == "use"


def test_the_twin_is_that_of_the_arms_that_took_part(tmp_path: Path) -> None:
    accuracy = {"real_augmented_strong": 0.6, "mixup": 0.7, "mixed": 0.95}
    roles = {name: "synthetic" if name == "mixed" else "baseline" for name in accuracy}
    read = [read_run(*finished(tmp_path, accuracy, run, roles=roles)) for run in range(4)]
    verdict = pooled_verdict(read, 500, 0.95, 2.0, seed=0)
    assert (verdict["best_baseline"], verdict["decision"]) == ("mixup", "use")
    assert verdict["reasons"] == []


def test_a_baseline_that_did_better_on_test_asks_for_care() -> None:
    runs = []
    for run in range(4):
        one = losing(run, (9, 3, 3))
        right = np.ones_like(one.test.correct["mixed"])
        test = replace(one.test, correct={**one.test.correct, "smote": right})
        validation = {**one.validation, "smote": ~right}
        roles = {**one.roles, "smote": "baseline"}
        runs.append(replace(one, roles=roles, validation=validation, test=test))
    verdict = pooled_verdict(runs, 500, 0.95, 80.0, seed=0)
    assert verdict["decision"] == "use_with_care"
    assert verdict["sentence"].endswith("With care: smote did better on test.")


def test_runs_of_unlike_arms_have_no_common_twin(tmp_path: Path) -> None:
    accuracy = {"real_balanced": 0.6, "real_augmented": 0.9, "mixed": 0.9}
    roles = {name: "synthetic" if name == "mixed" else "baseline" for name in accuracy}
    fewer = {name: role for name, role in roles.items() if name != "real_augmented"}
    arms = [roles, roles, roles, fewer]  # in the last run `mixed` was not augmented
    read = [read_run(*finished(tmp_path, accuracy, run, roles=one)) for run, one in enumerate(arms)]
    verdict = pooled_verdict(read, 500, 0.95, 2.0, seed=0)
    assert verdict["decision"] == "use_with_care"
    assert "with real_augmented or real_balanced" in verdict["sentence"]


def test_an_arm_of_another_version_is_named(tmp_path: Path) -> None:
    roles = {"real": "baseline", "magic": "synthetic"}
    accuracy = {"real": 0.6, "magic": 0.9}
    read = [read_run(*finished(tmp_path, accuracy, run, roles=roles)) for run in range(2)]
    with pytest.raises(InputError, match="run-0: arm magic is not known to this version"):
        pooled_verdict(read, 500, 0.95, 2.0, 0)


def test_the_command_prints_the_reasons_and_writes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.running.finished_folder", lambda *_: None)
    monkeypatch.setattr("pipeline.tracking.facts.read_verdict", lambda _: {})
    monkeypatch.setattr(
        "pipeline.downstream.pooled.read_run", lambda folder, _: losing(int(folder.name), (9, 9, 9))
    )
    out = tmp_path / "pooled.json"
    runs = [str(tmp_path / str(run)) for run in range(4)]
    told = CliRunner().invoke(app, ["pool", *runs, "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert "- a: surely worse, by more than 2 points of recall." in told.output
    written = json.loads(out.read_text())
    assert (written["decision"], written["margin_points"]) == ("use_with_care", 2.0)
    assert (written["n"]["splits"], written["n"]["seeds"]) == (4, [SEEDS] * 4)
    told = CliRunner().invoke(app, ["pool", *runs, "--out", str(out), "--margin", "80"])
    assert json.loads(out.read_text())["decision"] == "use"


def test_a_script_is_its_own_twin(tmp_path: Path) -> None:
    roles = {"real": "baseline", "resnet": "baseline", "resnet_mixed": "synthetic"}
    accuracy = {"real": 0.6, "resnet": 0.7, "resnet_mixed": 0.95}
    read = [read_run(*finished(tmp_path, accuracy, run, roles=roles)) for run in range(4)]
    assert pooled_verdict(read, 500, 0.95, 2.0, seed=0)["decision"] == "use"


def test_a_run_given_twice_is_no_second_split(tmp_path: Path) -> None:
    one, two = (finished(tmp_path, {"real": 0.6, "mixed": 0.9}, run) for run in range(2))
    with pytest.raises(InputError, match=r"run-0: predicts the same as .*run-0, to the last row"):
        pooled_verdict([read_run(*run) for run in (one, two, one)], 500, 0.95, 2.0, 0)


def test_other_images_of_one_generator_are_no_second_split(tmp_path: Path) -> None:
    accuracy = {"real": 0.6, "mixed": 0.9}
    read = [read_run(*finished(tmp_path, accuracy, run, trained=7)) for run in range(2)]
    with pytest.raises(InputError, match=r"run-1: its synthetic images are from .*run-0, so it"):
        pooled_verdict(read, 500, 0.95, 2.0, 0)
    none = [replace(one, synthetic=0) for one in read]
    assert pooled_verdict(none, 500, 0.95, 2.0, 0)["decision"] == "do_not_use"


def test_groups_are_those_of_the_dataset(tmp_path: Path) -> None:
    groups = [f"patient {i % 10}" for i in range(2 * EACH)]
    read = read_run(*finished(tmp_path, {"real": 0.6, "mixed": 0.7}, 0, groups=groups))
    assert read.test.groups is not None
    assert sorted(read.test.groups) == sorted(groups)
    assert count_units(read.test, 2) == (10, 10)


def test_two_splits_are_few_and_few_patients_too_few(tmp_path: Path) -> None:
    def over(runs: int, groups: list[str] | None = None) -> dict:
        accuracy = {"real_augmented": 0.6, "mixed": 0.95}
        roles = {"real_augmented": "baseline", "mixed": "synthetic"}
        root = tmp_path / f"{runs} {groups is None}"
        read = [finished(root, accuracy, run, roles=roles, groups=groups) for run in range(runs)]
        return pooled_verdict([read_run(*one) for one in read], 500, 0.95, 80.0, 0)

    assert over(3)["decision"] == "use"
    two = over(2)
    assert two["decision"] == "use_with_care"
    assert two["reasons"][-1] == "2 splits tell little of how much splits differ; pool 3 or more."
    few = over(3, [f"patient {i % 4}" for i in range(2 * EACH)])
    assert few["decision"] == "do_not_use"
    assert few["reasons"][0] == "Too few test images of a, b (fewer than 5)."


def test_a_test_row_that_the_dataset_lacks_is_named(tmp_path: Path) -> None:
    artifacts, verdict = finished(tmp_path, {"real": 0.6, "mixed": 0.9}, 0)
    other, _ = finished(tmp_path, {"real": 0.6, "mixed": 0.9}, 1)
    shutil.copytree(other / "prepare", artifacts / "prepare", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"predictions\.parquet: test row \w{12} is not in .*data"):
        read_run(artifacts, verdict)


@pytest.mark.parametrize("without", [1, 2])
def test_runs_without_an_accepted_image_count_and_are_named(tmp_path: Path, without: int) -> None:
    read = []
    for run in range(2):
        artifacts, verdict = finished(tmp_path, {"real": 0.6, "mixed": 0.9}, run)
        verdict["n"]["synthetic"] = 0 if run < without else 5
        read.append(read_run(artifacts, verdict))
    found = pooled_verdict(read, 500, 0.95, 2.0, 0)
    said = any("No synthetic image was accepted in" in one for one in found["reasons"])
    none = "none was accepted" in found["sentence"]
    assert (said, none) == (without == 1, without == 2)
    if without == 1:
        assert "run-0: nothing was added" in found["reasons"][-1]


def test_no_gain_is_not_used(tmp_path: Path) -> None:
    assert pooled(tmp_path, 0.6)["decision"] == "do_not_use"


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    accuracy = {"real": 0.6, "mixed": 0.6}
    one = read_run(*finished(tmp_path, accuracy, 0))
    other = read_run(*finished(tmp_path, accuracy, 1, ("a", "c")))
    with pytest.raises(InputError, match="two runs at least"):
        pooled_verdict([one], 500, 0.95, 2.0, 0)
    with pytest.raises(InputError, match="has other classes than"):
        pooled_verdict([one, other], 500, 0.95, 2.0, 0)


def test_a_missing_or_foreign_table_is_named(tmp_path: Path) -> None:
    artifacts, verdict = finished(tmp_path, {"real": 0.6, "mixed": 0.6}, 0)
    path = artifacts / "evaluate" / "predictions.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"predictions\.parquet: not readable"):
        read_run(artifacts, verdict)
    path.unlink()
    with pytest.raises(InputError, match="run `replenish evaluate` in that folder first"):
        read_run(artifacts, verdict)
