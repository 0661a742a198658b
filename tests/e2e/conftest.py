"""A copy of the project in an empty folder, with params that run in seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SMALL = {
    "execution": {"workers": 1},  # more than one take longer to start than the work takes
    "prepare": {"imbalance": {"max": 12, "min": 6}, "validation_fraction": 0.1},
    "pretrain": {"base": "pool", "steps": 12, "sheet_images": 4},
    "train": {
        "steps": 24,
        "batch_images": 16,
        "base_channels": 8,
        "checkpoint_every_steps": 6,
        "checks": 2,
        "check_images": 8,
        "sheet_images_per_class": 2,
    },
    "synthesize": {
        "images_per_class": 3,
        "sampler_steps": 3,
        "shard_images": 4,
        "max_rounds": 2,
        "judge_steps": 15,
        "filter_share": 0.0,
    },
    "evaluate": {
        "arms": ["real", "real_augmented", "mixed"],
        "mixed_shares": [0.5],
        "seeds": 2,
        "steps": 6,
        "base_channels": 8,
        "bootstrap_resamples": 100,
    },
    "report": {"images_per_class": 3, "examples": 4},
}


class Project:
    """The copied project: runs commands in it and reads what they left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["PREFECT_HOME"] = str(folder / ".prefect")
        environment["DVC_NO_ANALYTICS"] = environment["DO_NOT_TRACK"] = "1"
        # On busy cores, threads that wait by spinning take the time of those that work.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.environment = environment

    def run(
        self, *command: str, status: int = 0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def python(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *arguments, status=status)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Copy what git tracks or would track, make it a repository, and write small params."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    copied = Project(folder)
    copied.run("git", "init", "--quiet")
    return copied
