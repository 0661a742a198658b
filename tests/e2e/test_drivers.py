"""Both drivers, end to end, on real digits: one behaviour, the same digests."""

import json

import pytest

from pipeline.folders import read_manifest
from pipeline.params import SECTIONS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def flow(project):
    two = ("--set", "execution.workers=2")  # `repro` has one
    return project.python("-m", "flows.augment", "--artifacts", "by-flow", *two)


@pytest.fixture(scope="module")
def repro(project):
    return project.run("dvc", "repro")


def test_the_flow_prints_arms_verdict_and_paths(project, flow):
    verdict = json.loads((project.folder / "by-flow/evaluate/verdict.json").read_text())
    assert verdict["decision"] in {"use", "use_with_care", "do_not_use"}
    assert verdict["sentence"] in flow.stdout
    for arm in ("real", "real_augmented", "mixed"):
        assert arm in flow.stdout
    assert "by-flow/report/index.html" in flow.stdout
    assert "mlflow" in flow.stdout
    assert (project.folder / "by-flow/report/index.html").is_file()


def test_dvc_with_one_worker_gives_the_same_digests_as_the_flow_with_two(project, flow, repro):
    for stage in SECTIONS:
        by_flow = read_manifest(project.folder / "by-flow" / stage)
        by_dvc = read_manifest(project.folder / "artifacts" / stage)
        assert by_flow.files == by_dvc.files, stage
        assert by_flow == by_dvc


def test_both_start_from_a_base_of_the_pool(project, flow, repro):
    for artifacts in ("by-flow", "artifacts"):
        folder = project.folder / artifacts
        base = json.loads((folder / "pretrain/base/base.json").read_text())
        assert base["kind"] == "pool"
        train = json.loads((folder / "train/summary.json").read_text())
        assert train["base_digest"] == base["digest"]


def test_a_second_repro_runs_nothing(project, repro):
    again = project.run("dvc", "repro")
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout


def test_dvc_shows_metrics_and_plots(project, repro):
    assert "gain_points" in project.run("dvc", "metrics", "show").stdout
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    assert "Training loss" in page
    assert "Balanced accuracy by arm" in page


def test_one_mlflow_run_for_the_flow_and_one_for_the_repro_with_their_arms(project, flow, repro):
    code = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
        "e = [x.experiment_id for x in c.search_experiments()];"
        "print(*sorted((r.data.tags.get('mlflow.parentRunId', '') != '', r.info.status)"
        " for r in c.search_runs(e)), sep='\\n')"
    )
    lines = project.python("-W", "ignore", "-c", code).stdout.splitlines()
    assert lines == ["(False, 'FINISHED')"] * 2 + ["(True, 'FINISHED')"] * 6


def test_everything_verifies_and_a_changed_byte_does_not(project, repro):
    done = project.python("-m", "pipeline", "verify", "artifacts")
    assert "all is well" in done.stdout
    path = project.folder / "by-flow/synthesize/metrics.json"
    path.write_text(path.read_text() + " ")
    broken = project.python("-m", "pipeline", "verify", "by-flow", status=1)
    assert "changed: metrics.json" in broken.stdout


def test_a_finished_run_has_nothing_to_do(project, repro):
    done = project.python("-m", "pipeline", "run", "--dry-run")
    assert done.stdout.count("up to date") == len(SECTIONS)
