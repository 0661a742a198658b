import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.testing.utilities import prefect_test_harness

import flows.augment as module
from flows.augment import Changes, augment, main
from pipeline.errors import InputError, StageError
from pipeline.folders import write_json, write_manifest
from pipeline.params import SECTIONS, load_params
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
        monkeypatch.setattr(module, "run_stage", self.run_stage)

    def run_stage(self, name, params, artifacts, tracker, *, force=False):
        self.ran.append((name, params, force))
        with tracker.stage(name):
            waiting = self.failures.get(name, [])
            if waiting:
                raise waiting.pop(0)
            tracker.note(f"{name}: [up] to date")
            tracker.progress(name, 1, 1, "images")
            folder = artifacts / name
            folder.mkdir(parents=True, exist_ok=True)
            if name == "evaluate":
                write_json(folder / "verdict.json", VERDICT)
            write_manifest(folder, name, "k", {}, {})
        return Summary()

    @property
    def names(self):
        return [name for name, _, _ in self.ran]


def latest_run():
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]


def artifacts_of(run):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return {artifact.key: artifact for artifact in found}


def test_the_flow_runs_all_stages_in_order_and_shows_its_results(project):
    outcome = augment(changes=Changes(guidance=2.0), more=("seed=3",), force=True, mlflow=False)
    assert project.names == list(SECTIONS)
    _, params, force = project.ran[0]
    assert (params.train.steps, params.synthesize.guidance, params.seed) == (7, 2.0, 3)
    assert force is True
    assert outcome["decision"] == "use"
    assert list(outcome["seconds"]) == list(SECTIONS)
    shown = artifacts_of(latest_run())
    assert set(shown) == {"verdict", "arms", "links"}
    assert r"**Use \<b\>them\</b\>**" in shown["verdict"].data
    assert r"| a\|b | 6 | 3.0 |" in shown["verdict"].data
    (row,) = json.loads(shown["arms"].data)
    assert row["arm"] == "real"
    (log,) = (project.root / "runs").glob("*-flow.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["stage"] for e in events if e["event"] == "stage_end"] == list(SECTIONS)


@pytest.mark.parametrize("error", [InputError("prepare: bad file x.png"), StageError("diverged")])
def test_an_error_that_stays_is_not_tried_again_and_is_the_runs_message(project, error, caplog):
    project.failures["train"] = [error]
    with pytest.raises(type(error), match=str(error)):
        augment(mlflow=False)
    assert project.names == ["prepare", "pretrain", "train"]
    run = latest_run()
    assert run.state.is_failed()
    assert run.state.message == str(error)
    assert "Traceback" not in caplog.text


def test_an_error_that_may_pass_is_tried_twice_more(project):
    project.failures["train"] = [ConnectionError("blip"), ConnectionError("blip")]
    assert augment(mlflow=False)["decision"] == "use"
    assert project.names == ["prepare", "pretrain", *["train"] * 3, *SECTIONS[3:]]


def test_an_error_that_does_not_pass_fails_the_run(project):
    project.failures["train"] = [ConnectionError("blip") for _ in range(3)]
    with pytest.raises(ConnectionError, match="blip"):
        augment(mlflow=False)
    assert project.names == ["prepare", "pretrain", *["train"] * 3]
    assert latest_run().state.is_failed()


def test_a_wrong_params_file_fails_the_run_with_its_message(project):
    (project.root / "params.yaml").write_text("train:\n  stpes: 7\n")
    with pytest.raises(InputError, match="stpes is not a known key; did you mean `steps`"):
        augment(mlflow=False)
    assert "stpes is not a known key" in latest_run().state.message


def test_the_form_has_described_and_bounded_fields():
    schema = augment.parameters.model_dump()
    assert set(schema["properties"]) == {
        *("params_file", "artifacts", "changes", "more", "force", "mlflow")
    }
    for field in schema["properties"].values():
        assert field["description"]
    assert schema["required"] == []
    changes = schema["definitions"]["Changes"]["properties"]
    for field in changes.values():
        assert field["description"]
    assert changes["source"]["anyOf"][0]["enum"] == ["digits", "folder", "idx"]
    assert changes["base"]["anyOf"][0]["enum"] == ["none", "pool", "folder", "hub", "run"]
    assert changes["guidance"]["anyOf"][0]["maximum"] == 20.0


def test_every_change_names_a_param(tmp_path):
    (tmp_path / "params.yaml").write_text("{}")
    changes = Changes(
        source="folder",
        path="some: [odd] #path",
        base="hub",
        base_path="artifacts of: [last] #year",
        base_hub_id="someone/unet@v1",
        seed=4,
        train_steps=5,
        images_per_class=6,
        guidance=1.0,
        comparison_seeds=7,
        comparison_steps=8,
    )
    params = load_params(tmp_path / "params.yaml", changes.overrides())
    assert (params.prepare.source, params.prepare.path) == ("folder", "some: [odd] #path")
    pretrain = params.pretrain
    assert (pretrain.base, pretrain.path) == ("hub", "artifacts of: [last] #year")
    assert pretrain.hub_id == "someone/unet@v1"
    assert (params.seed, params.train.steps, params.synthesize.images_per_class) == (4, 5, 6)
    assert (params.synthesize.guidance, params.evaluate.seeds, params.evaluate.steps) == (1.0, 7, 8)


def test_the_command_ends_with_verdict_seconds_and_addresses(project, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--no-mlflow", "--set", "train.steps=9"])
    assert ended.value.code == 0
    assert project.ran[0][1].train.steps == 9
    out = capsys.readouterr().out
    assert "Verdict: Use <b>them</b>" in out
    assert "Time:    prepare " in out
    assert [part.split()[0] for part in out.split("Time:")[1].split(";")[0].split(", ")] == list(
        SECTIONS
    )
    assert "Report:  artifacts/report/index.html" in out


@pytest.mark.parametrize(("error", "status"), [(InputError("bad x"), 2), (StageError("bad x"), 1)])
def test_the_command_fails_with_a_line_and_a_status(project, capsys, error, status):
    project.failures["prepare"] = [error]
    with pytest.raises(SystemExit) as ended:
        main(["--no-mlflow"])
    assert ended.value.code == status
    assert "error: bad x\n" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(project, capsys, monkeypatch):
    class Silent:
        api_url = "http://127.0.0.1:9/api"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def api_healthcheck(self):
            return ConnectionError("refused")

    monkeypatch.setattr(module, "get_client", lambda **_: Silent())
    with pytest.raises(SystemExit) as ended:
        main(["--no-mlflow"])
    assert ended.value.code == 1
    assert "http://127.0.0.1:9/api does not answer" in capsys.readouterr().err
    assert project.ran == []
