"""The command line: help, exit statuses, messages. Stages themselves are tested elsewhere."""

import socket
import subprocess
import sys

import pytest
from typer.main import get_command

from pipeline import __main__ as cli
from pipeline.errors import InputError, StageError
from pipeline.params import SECTIONS


def replenish(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_command_with_an_example():
    text = replenish("--help").stdout
    for command in (*SECTIONS, "run", "verify", "doctor", "dag", "version"):
        assert command in text
    for name, command in get_command(cli.app).commands.items():
        assert "Example" in (command.epilog or ""), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=1", "train.stepz is not a known key; did you mean `steps`?"),
        ("train.steps=-1", "train.steps = -1: input should be greater than or equal to 1"),
        ("train.steps=many", 'train.steps = "many": input should be a valid integer'),
        ("sampler=x", "sampler is not a known key"),
        (
            "pretrain.base=magic",
            "pretrain.base = \"magic\": input should be 'auto', 'none', 'pool'",
        ),
        ("pretrain.base=hub", "base hub needs hub_id, such as owner/name"),
        ("train.augment=[spin]", "train.augment.0 = \"spin\": input should be 'flip', 'flip_vert"),
        ("train", "write section.key=value"),
    ],
)
def test_a_wrong_param_ends_with_status_2_before_any_work(tmp_path, override, message):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    done = replenish("run", "--set", override, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["params.yaml"]


def test_a_wrong_param_of_train_is_told_once(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    done = replenish("run", "--set", "train.batch_images=0", cwd=tmp_path)
    assert done.stderr.count("error:") == 1


def test_stages_want_those_before_them(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    for name, before in (("pretrain", "prepare"), ("train", "prepare")):
        done = replenish(name, "--no-mlflow", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{name}: needs the finished folder of `{before}`" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_dry_run_lists_every_stage_in_order(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    done = replenish("run", "--dry-run", cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SECTIONS)
    assert done.stdout.count("would run") == len(SECTIONS)
    assert not (tmp_path / "artifacts").exists()


def test_missing_params_file_says_what_to_do(tmp_path):
    done = replenish("run", cwd=tmp_path)
    assert done.returncode == 2
    assert "params.yaml: no such params file; give one with --params" in done.stderr


def test_a_missing_data_folder_ends_with_status_2(tmp_path):
    (tmp_path / "params.yaml").write_text("prepare: {source: folder, path: nowhere}\n")
    done = replenish("prepare", "--no-mlflow", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        (InputError("row 3: bad\nrow 4: bad"), 2, "error: row 3: bad\nerror: row 4: bad"),
        (StageError("it failed"), 1, "error: it failed"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops (run again with --debug"),
    ],
)
def test_errors_become_messages_and_statuses(monkeypatch, capsys, raised, status, shown):
    def app():
        raise raised

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["replenish", "run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == status
    assert shown in capsys.readouterr().err


def test_doctor_examines_the_machine(tmp_path):
    done = replenish("doctor", "--artifacts", str(tmp_path / "a"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for topic in ("python", "torch", "device", "precision", "memory", "disk", "port 5000"):
        assert topic in done.stdout


def test_verify_wants_a_folder_of_ours(tmp_path):
    assert "no such folder" in replenish("verify", str(tmp_path / "x")).stderr
    done = replenish("verify", str(tmp_path))
    assert done.returncode == 2
    assert "holds no finished stage and no sample store" in done.stderr


def test_debug_shows_the_traceback_and_keeps_the_status(tmp_path):
    done = replenish("run", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "no such params file" in done.stderr


def test_a_port_in_use_is_told_by_doctor(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = replenish("doctor", "--mlflow-port", str(port), cwd=tmp_path)
    line = next(line for line in done.stdout.splitlines() if f"port {port}" in line)
    assert line.startswith("warn")
    assert "Address already in use" in line
