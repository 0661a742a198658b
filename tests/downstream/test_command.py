import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from pipeline.data.images import Images
from pipeline.data.store import Samples, concatenate, make_samples, read_samples
from pipeline.downstream import command, command_output
from pipeline.downstream.command import TaskData, run_command, write_task_data
from pipeline.downstream.weights import sampling_weights
from pipeline.errors import InputError, StageError

CLASSES = ("cat", "dog", "eel")
ROOT = Path(__file__).parents[2]

# What a well-behaved script does, with a place for each test's own misdeed.
SCRIPT = """
import csv, json, os, pathlib, sys
import pyarrow.parquet as pq
task = json.loads(pathlib.Path(os.environ["REPLENISH_TASK"]).read_text())
ids = []
for split in ("validation", "test"):
    for path in sorted(pathlib.Path(task[split], "data").glob("*.parquet")):
        ids += pq.read_table(path).column("id").to_pylist()
rows = [["id", "label"]] + [[one, task["classes"][int(one[0], 16) % 3]] for one in ids]
{body}
with open(task["predictions"], "w", newline="") as file:
    csv.writer(file).writerows(rows)
"""


def noise(n: int, seed: int) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def rows(n: int, split: str, seed: int, origin: str = "real") -> Samples:
    labels = (np.arange(n) % 3).astype(np.int64)
    groups = [f"{CLASSES[label]}/{i}" for i, label in enumerate(labels)]
    extra = {"quality": [float(label) for label in labels]}
    return make_samples(noise(n, seed), labels, split, origin, groups, extra)


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return write(tmp_path / "stores", None)


def write(folder: Path, share: float | None) -> TaskData:
    training = concatenate([rows(9, "train", 0), rows(6, "train", 1, "synthetic")])
    held_out = rows(7, "validation", 2), rows(5, "test", 3)
    return write_task_data(folder, training, *held_out, CLASSES, 4, "L", share)


def run(data: TaskData, tmp_path: Path, body: str = "", timeout_seconds: float = 60.0, **options):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{body}", body))
    words = [sys.executable, str(script)]
    return run_command(words, data, "mine", 3, 40, tmp_path / "work", timeout_seconds, **options)


def expected(ids: tuple[str, ...]) -> list[int]:
    return [int(one[0], 16) % 3 for one in ids]


def test_predictions_come_back_in_the_order_of_the_rows(data, tmp_path) -> None:
    lines: list[str] = []
    found = run(
        data, tmp_path, 'print("hello"); print("oh", file=sys.stderr)', on_line=lines.append
    )
    assert lines == ["hello", "oh"]
    assert found.validation.dtype == np.int64
    assert found.validation.tolist() == expected(data.validation_ids)
    assert found.test.tolist() == expected(data.test_ids)
    assert found.validation_probabilities.shape == (7, 0)
    assert found.test_probabilities.shape == (5, 0)


def test_the_task_tells_what_is_asked_for(tmp_path) -> None:
    data = write(tmp_path / "stores", 0.25)
    run(data, tmp_path)
    task = json.loads((tmp_path / "work" / "task.json").read_text())
    assert {key: task[key] for key in ("arm", "seed", "steps", "share", "classes")} == {
        "arm": "mine",
        "seed": 3,
        "steps": 40,
        "share": 0.25,
        "classes": list(CLASSES),
    }
    training = read_samples(Path(task["training"]))
    assert training.labels.tolist() == [0, 1, 2] * 5
    assert training.origins.count("synthetic") == 6
    weights = np.asarray(training.extra["sampling_weight"])
    synthetic = np.asarray(training.origins) == "synthetic"
    assert weights[synthetic].sum() / weights.sum() == pytest.approx(0.25)


def test_a_script_cannot_peek(data) -> None:
    for folder, ids in ((data.validation, data.validation_ids), (data.test, data.test_ids)):
        found = read_samples(folder)
        assert set(found.labels) == {-1}
        assert found.ids == tuple(sorted(ids))
        assert found.groups == found.ids
        assert not found.extra
        assert b"cat/" not in b"".join(path.read_bytes() for path in folder.rglob("*.parquet"))


def test_without_a_share_there_are_no_synthetic_rows(data) -> None:
    found = read_samples(data.training)
    assert set(found.origins) == {"real"}
    assert found.extra["sampling_weight"] == [1.0] * 9


def test_sampling_weights_make_classes_equal_and_kinds_as_asked() -> None:
    labels = np.array([0, 0, 0, 0, 1, 0, 0, 2, 2])
    synthetic = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    weights = sampling_weights(labels, synthetic, 0.25)
    assert weights.mean() == pytest.approx(1)
    sums = [weights[(labels == k) & (synthetic == s)].sum() / 9 for k in range(3) for s in (0, 1)]
    assert sums == pytest.approx([0.75 / 3, 0.25 / 3, 1 / 3, 0, 0, 1 / 3])


def test_the_environment_is_small_and_the_places_are_filled_in(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    body = "print(json.dumps([dict(os.environ), sys.argv[1:], os.getcwd()]))"
    script.write_text(SCRIPT.replace("{body}", body))
    lines: list[str] = []
    words = [sys.executable, "{project}/script.py", "{seed}", "{task}", '{"a": {}}', "{work}"]
    monkeypatch.setattr(command, "_LINE_CHARACTERS", 10**6)
    run_command(words, data, "mine", 3, 40, tmp_path / "work", 60, lines.append)
    environment, arguments, folder = json.loads(lines[0])
    work = str(tmp_path / "work")
    assert folder == work
    assert arguments == ["3", f"{work}/task.json", '{"a": {}}', work]
    own = {name for name in environment if name.startswith("REPLENISH_")}
    assert own == {f"REPLENISH_{name}" for name in ("TASK", "SEED", "WORK", "PROJECT")}
    others = {"PYTHONUNBUFFERED", "PYTHONHASHSEED", "LC_CTYPE"}  # Python sets the last one itself
    assert set(environment) <= {*command.PASSED_ON, *own, *others}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('print("almost"); sys.exit(3)', r"failed with exit status 3; .*\nalmost"),
        ("raise RuntimeError('no data')", r"exit status 1; .*its last lines:\n.*no data"),
        ("os.kill(os.getpid(), 9)", "failed with signal 9"),
        ("sys.exit(0)", r"work: holds neither of predictions\.csv and predictions\.parquet"),
        ("rows.pop()", r"predictions\.csv: 1 of 12 ids are missing, such as [0-9a-f]{40}"),
        ("del rows[1:]", r"12 of 12 ids are missing"),
        ("rows.append(rows[1])", r"predictions\.csv: row 14: id \w+\.* occurs a second time"),
        ("rows.append(['x1', 'cat'])", r"unknown ids: x1 \(row 14\); write the ids"),
        (
            "rows += [[f'x{i}', 'cat'] for i in range(9)]",
            r"unknown ids: x0 \(row 14\), x1 \(row 15\), x2 \(row 16\); write",
        ),
        ("rows[4][1] = 'bird'", r"row 5: unknown class 'bird'; write class names \(cat, dog, eel"),
        ("rows[4][1] = '1.0'", r"row 5: unknown class '1\.0'"),
        (
            "rows[1:] = [[one, 0] for one, _ in rows[1:]]; rows[2][1] = 'dog'",
            r"row \d: unknown class '0'; .*throughout",
        ),
        ("rows[1:] = [[one, 3] for one, _ in rows[1:]]", "unknown class '3'"),
        ("rows[0] = ['id', 'class']", r"no column label \(it has id, class\)"),
        ("rows[0] = ['id', 'id']", "the column id occurs twice"),
        ("rows = []", r"no column id \(it has none\)"),
        ("rows[2] += ['more']", r"row 3: 3 values for 2 columns"),
        ("open('predictions.parquet', 'w')", "holds both of"),
        (
            "open('predictions.csv', 'wb').write(b'id,label\\n\\xff'); sys.exit()",
            r"predictions\.csv: row 1 or the one after it: no CSV in UTF-8",
        ),
        ("os.mkdir('predictions.csv'); sys.exit()", "not a file"),
        ("os.symlink('/etc/hosts', 'predictions.csv'); sys.exit()", "a link leads out"),
        (
            "open('predictions.parquet', 'w').write('no'); sys.exit()",
            r"predictions\.parquet: not readable as Parquet",
        ),
    ],
)
def test_what_is_wrong_is_named(data, tmp_path, body: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"(?s)^arm mine, seed 3: command `.*{message}"):
        run(data, tmp_path, body)


TABLE = """
rows[0] += ["probability_cat", "probability_dog", "probability_eel"]
for row in rows[1:]:
    row += [0.2, 0.3, 0.5]
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("rows[3][3] = 'nan'", r"row 4: probability nan is not finite or outside \[0, 1\]"),
        ("rows[3][3] = 'inf'", r"row 4: probability inf is not finite"),
        ("rows[3][3] = -0.3", r"row 4: probability -0\.3 is not finite or outside"),
        ("rows[3][3] = 0.9", r"row 4: the probabilities sum to 1\.6, not to 1"),
        ("rows[3][3] = 'much'", r"row 4: probability 'much' is no number"),
        ("rows[0][3] = 'probability_bird'", "the column probability_bird belongs to no class"),
        ("rows[0][3] = 'other'", "the column probability_dog is missing"),
    ],
)
def test_wrong_probabilities_are_named(data, tmp_path, body: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(data, tmp_path, TABLE + body)


def test_probabilities_are_read_by_name_and_other_columns_passed_over(data, tmp_path) -> None:
    body = TABLE + "rows = [['', r[4], r[0], r[2], r[3], r[1]] for r in rows]"
    found = run(data, tmp_path, body)
    np.testing.assert_allclose(found.test_probabilities, [[0.2, 0.3, 0.5]] * 5, atol=1e-7)
    assert found.validation_probabilities.dtype == np.float32
    assert found.validation.tolist() == expected(data.validation_ids)


def test_indices_and_parquet_are_read_too(data, tmp_path) -> None:
    body = """
import pyarrow
table = {"id": ids, "label": [int(one[0], 16) % 3 for one in ids]}
pq.write_table(pyarrow.table(table), "predictions.parquet")
sys.exit()
"""
    assert run(data, tmp_path, body).test.tolist() == expected(data.test_ids)


def test_classes_that_are_numbers_are_names_first(tmp_path) -> None:
    def read(labels: list[int]) -> list[int]:
        table = {"id": ["a", "b", "c"], "label": labels}
        pq.write_table(pa.table(table), tmp_path / "predictions.parquet")
        found = command_output.read_predictions(tmp_path, ("a", "b"), ("c",), ("1", "2", "3"))
        return [*found.validation.tolist(), *found.test.tolist()]

    assert read([1, 2, 3]) == [0, 1, 2]
    assert read([0, 1, 2]) == [0, 1, 2]


def test_files_that_are_too_large_are_not_read(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command_output, "_MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"predictions\.csv: 2 MiB, more than 1 MiB"):
        run(data, tmp_path, "open(task['predictions'], 'w').write(' ' * 2**21); sys.exit()")
    (tmp_path / "work" / "predictions.csv").unlink()
    packed = pa.table({"id": pa.array(["x"] * 2**19), "label": pa.array(["y" * 9] * 2**19)})
    path = tmp_path / "work" / "predictions.parquet"
    pq.write_table(packed, path, use_dictionary=False, compression="zstd")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"predictions\.parquet: more than 1 MiB unpacked"):
        command_output.read_predictions(tmp_path / "work", (), (), CLASSES)


def test_an_earlier_runs_predictions_do_not_pass_for_this_ones(data, tmp_path) -> None:
    run(data, tmp_path)
    assert (tmp_path / "work" / "predictions.csv").is_file()
    with pytest.raises(InputError, match="holds neither of"):
        run(data, tmp_path, "sys.exit(0)")


SLEEPERS = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}")
print("ready")
"""


def gone(tmp_path: Path) -> bool:
    """Whether script and child are no more, within a while."""
    pids = [int(one) for one in (tmp_path / "work" / "pids").read_text().split()]
    for _ in range(200):
        alive = [one for one in pids if psutil.pid_exists(one)]
        alive = [one for one in alive if psutil.Process(one).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "stubborn", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"]
)
def test_a_script_out_of_time_is_ended_with_all_it_started(
    data, tmp_path, stubborn, monkeypatch
) -> None:
    monkeypatch.setattr(command, "_GRACE_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"(?s)was ended after 6 seconds; raise its.*ready"):
        run(data, tmp_path, stubborn + SLEEPERS + "time.sleep(600)", timeout_seconds=6)
    assert gone(tmp_path)


def test_what_a_script_leaves_running_is_ended(data, tmp_path) -> None:
    found = run(data, tmp_path, SLEEPERS)
    assert len(found.test) == 5
    assert gone(tmp_path)


def test_ctrl_c_ends_the_script(data, tmp_path) -> None:
    def interrupt(line: str) -> None:
        if line == "ready":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, SLEEPERS + "time.sleep(600)", on_line=interrupt)
    assert gone(tmp_path)


def test_a_flood_of_output_neither_blocks_nor_outlasts_the_time(data, tmp_path) -> None:
    lines: list[str] = []
    body = "print('x' * 10_000); [print(i) for i in range(5_000)]"
    run(data, tmp_path, body, on_line=lines.append)
    assert lines[-1] == "4999"
    assert max(map(len, lines)) == 500
    with pytest.raises(InputError, match="was ended after 3 seconds"):
        run(data, tmp_path, "while True: print('y')", timeout_seconds=3)


def test_a_program_that_is_not_there_is_named(data, tmp_path) -> None:
    with pytest.raises(InputError, match=r"`no-such-program` cannot be started .*full path"):
        run_command(["no-such-program"], data, "mine", 0, 1, tmp_path / "work", 5)


def test_a_relative_path_comes_with_its_remedy(data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    with pytest.raises(InputError, match=r"write \{project\}/train\.py"):
        run_command([sys.executable, "train.py"], data, "mine", 0, 1, tmp_path / "work", 30)


def test_repeats_and_nothing_to_train_on_are_refused(tmp_path) -> None:
    held_out = rows(3, "validation", 2), rows(3, "test", 3)
    twice = concatenate([held_out[0], held_out[0]])
    settings = (CLASSES, 4, "L", None)
    with pytest.raises(StageError, match="occurs twice in validation"):
        write_task_data(tmp_path, rows(3, "train", 0), twice, held_out[1], *settings)
    synthetic = rows(3, "train", 0, "synthetic")
    with pytest.raises(StageError, match="no training rows"):
        write_task_data(tmp_path, synthetic, *held_out, *settings)


@pytest.mark.parametrize("model", ["svc", "boosting"])
def test_the_example_in_scikit_learn(model: str, tmp_path) -> None:
    digits = load_digits(n_class=3)
    images = (digits.images[..., None] * 15).astype(np.uint8)
    cuts = (slice(0, 120), slice(120, 160), slice(160, 240))
    names = ("train", "validation", "test")
    parts = [
        make_samples(images[cut], digits.target[cut], split, "real")
        for cut, split in zip(cuts, names, strict=True)
    ]
    data = write_task_data(tmp_path / "stores", *parts, ("zero", "one", "two"), 8, "L", None)
    words = [sys.executable, str(ROOT / "examples" / "sklearn_arm.py"), "--model", model]
    found = run_command(words, data, model, 0, 10, tmp_path / "work", 300)
    assert (found.test == digits.target[cuts[2]]).mean() > 0.9
    assert (found.validation == digits.target[cuts[1]]).mean() > 0.9
    width = 3 if model == "boosting" else 0
    assert found.test_probabilities.shape == (80, width)
    if width:
        np.testing.assert_allclose(found.test_probabilities.sum(1), 1, atol=1e-5)
        assert (found.test_probabilities.argmax(1) == found.test).all()
