"""A Prefect server for all tests of flows, and a project whose stages only write manifests."""

import pytest
from prefect.testing.utilities import prefect_test_harness

import flows.augment as module
from pipeline.folders import write_json, write_manifest
from pipeline.stages.contract import Summary

VERDICT = {
    "decision": "use",
    "sentence": "Use <b>them</b>",
    "best_baseline": "real",
    "best_synthetic": "mixed_50",
    "gain_points": 3.0,
    "interval_points": [1.0, 5.0],
    "tail_gain_points": 6.0,
    "arms": [{"name": "real", "role": "baseline", "share": None}],
    "per_class": [{"name": "a|b", "training_images": 6, "gain_points": 3.0}],
}


@pytest.fixture(scope="session")
def server():
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    """A project folder, and stages that only write a manifest; `fail(name, error)` breaks one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "RETRY_DELAY_SECONDS", 0)
    (tmp_path / "params.yaml").write_text("train:\n  steps: 7\n")
    return Project(tmp_path, monkeypatch)


class Project:
    def __init__(self, root, monkeypatch):
        self.root = root
        self.ran = []
        self.failures = {}
        monkeypatch.setattr(module, "run_stage_at", self.run_stage_at)

    def run_stage_at(self, name, params, place, tracker, *, force=False):
        self.ran.append((name, params, force))
        with tracker.stage(name):
            waiting = self.failures.get(name, [])
            if waiting:
                raise waiting.pop(0)
            tracker.note(f"{name}: [up] to date")
            tracker.progress(name, 1, 1, "images")
            folder = place.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            if name == "evaluate":
                write_json(folder / "verdict.json", VERDICT)
            write_manifest(folder, name, "k", {}, {})
        return Summary()

    @property
    def names(self):
        return [name for name, _, _ in self.ran]
