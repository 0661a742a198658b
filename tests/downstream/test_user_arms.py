import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.data.images import Images
from pipeline.data.store import Samples, StoreInfo, make_samples
from pipeline.downstream.arms import make_pools
from pipeline.downstream.bench import Bench
from pipeline.downstream.user_arms import UserArms, scripts_digest
from pipeline.errors import InputError
from pipeline.params import EvaluateParams, UserCommand

# Predicts by the brightness of an image, and notes that it ran.
SCRIPT = """
import csv, io, json, os, sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
from PIL import Image
task = json.loads(Path(os.environ["REPLENISH_TASK"]).read_text())
with open(sys.argv[1], "a") as file:
    file.write(f"{task['arm']} {task['seed']}\\n")
def rows(folder):
    for path in sorted((Path(folder) / "data").glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()
kinds = {row["origin"] for row in rows(task["training"])}
assert ("synthetic" in kinds) == (task["share"] is not None), kinds
with open(task["predictions"], "w") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "label"])
    for split in ("validation", "test"):
        for row in rows(task[split]):
            bright = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).mean() > 127
            writer.writerow([row["id"], "bright" if bright else "dark"])
"""


def images(labels: np.ndarray, seed: int) -> Images:
    low = np.random.default_rng(seed).integers(0, 100, (len(labels), 4, 4, 1))
    return (low + 150 * labels[:, None, None, None]).astype(np.uint8)


def part(n: int, split: str, seed: int, origin: str = "real") -> Samples:
    labels = np.arange(n) % 2
    return make_samples(images(labels, seed), labels, split, origin)


SPLITS = {
    "train": part(6, "train", 0),
    "validation": part(5, "validation", 1),
    "test": part(8, "test", 2),
    "synthetic": part(4, "train", 3, "synthetic"),
}


def user_arms(folder: Path, tracker, body: str = SCRIPT, **splits: Samples) -> UserArms:
    script = folder / "script.py"
    script.write_text(body)
    parts = {**SPLITS, **splits}
    train = parts["train"]
    bench = Bench(
        train.images,
        train.labels,
        make_pools(train.labels, np.zeros(len(train), dtype=bool), 2),
        parts["validation"].images,
        parts["test"].images,
        2,
        len(train),
    )
    command = UserCommand(command=(sys.executable, str(script), str(folder / "ran")))
    params = EvaluateParams(commands={"mine": command})
    info = StoreInfo(("dark", "bright"), 4, "L", {}, "")
    return UserArms(params, info, parts, bench, 50, folder / "runs", tracker)


def test_a_script_is_two_arms_and_runs_once_a_seed(tmp_path: Path, recording_tracker) -> None:
    arms = user_arms(tmp_path, recording_tracker)
    found = arms.results(range(2))
    said = {(arm.name, arm.role, seed) for arm, seed in found}
    assert said == {
        (name, role, seed)
        for name, role in (("mine", "baseline"), ("mine_mixed", "synthetic"))
        for seed in range(2)
    }
    for predictions in found.values():
        assert (predictions.test == SPLITS["test"].labels).all()
        assert (predictions.validation == SPLITS["validation"].labels).all()
        assert np.isnan(predictions.test_probabilities).all()
    assert len((tmp_path / "ran").read_text().split("\n")) == 4 + 1
    again = user_arms(tmp_path, recording_tracker).results(range(3))
    assert len(again) == 6
    assert len((tmp_path / "ran").read_text().split("\n")) == 6 + 1  # the third seed alone


def test_without_synthetic_rows_there_is_no_arm_with_them(
    tmp_path: Path, recording_tracker
) -> None:
    arms = user_arms(tmp_path, recording_tracker, synthetic=SPLITS["synthetic"].take([]))
    assert [arm.name for arm, _ in arms.results(range(1))] == ["mine"]


def test_a_script_that_fails_is_named(tmp_path: Path, recording_tracker) -> None:
    arms = user_arms(tmp_path, recording_tracker, "raise SystemExit('no licence')")
    with pytest.raises(InputError, match=r"arm mine, seed 0: command .*\n?.*exit status 1"):
        arms.results(range(1))


@pytest.mark.parametrize("names", [("cutmix",), ("mixed",), ("mine", "mine_mixed")])
def test_a_script_with_the_name_of_an_arm_is_refused(names: tuple[str, ...]) -> None:
    command = UserCommand(command=("python", "train.py"))
    with pytest.raises(ValidationError, match=f"commands.{names[-1]}: there is an arm of that"):
        EvaluateParams(commands=dict.fromkeys(names, command))


def test_a_changed_script_changes_the_digest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.py"
    script.write_text("first")
    command = UserCommand(command=(sys.executable, "{project}/train.py", "--rate", "0.1"))
    params = EvaluateParams(commands={"mine": command})
    first = scripts_digest(params)
    script.write_text("second")
    assert first != scripts_digest(params) != ""
    script.write_text("first")
    assert scripts_digest(params) == first
    assert scripts_digest(EvaluateParams()) == ""
