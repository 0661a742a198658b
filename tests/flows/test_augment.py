import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.augment import augment, main, sweep_tags
from flows.form import Changes, Synthesis
from pipeline.errors import InputError, StageError
from pipeline.folders import write_json
from pipeline.params import SECTIONS

ROOT = Path(__file__).parents[2]


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
    outcome = augment(
        changes=Changes(synthesis=Synthesis(guidance=2.0)),
        more=("seed=3",),
        force=True,
        mlflow=False,
    )
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
    groups = schema["definitions"]
    assert set(groups) == {"Changes", "Data", "Generator", "Synthesis", "Comparison", "Where"}
    for group in groups.values():
        for field in group["properties"].values():
            assert field["description"]


def test_a_second_run_in_a_folder_is_refused_and_told_who_is_there(project):
    work = project.root / "artifacts" / ".work"
    work.mkdir(parents=True)
    write_json(
        work / "flow.json",
        {"flow_run_id": "4", "flow_run_name": "busy-bee", "since": "2026-01-31T02:00:00+00:00"},
    )
    with (
        FileLock(work / "flow.lock"),
        pytest.raises(
            InputError, match=r"artifacts: the flow run busy-bee \(id 4, since 2026-01-31"
        ),
    ):
        augment(mlflow=False)
    assert project.ran == []
    assert "A schedule that comes too often overlaps itself" in latest_run().state.message


def test_the_folder_is_free_again_after_a_run_that_failed(project):
    project.failures["prepare"] = [StageError("no")]
    with pytest.raises(StageError):
        augment(mlflow=False)
    assert augment(mlflow=False)["decision"] == "use"
    assert not (project.root / "artifacts" / ".work" / "flow.json").exists()


def test_the_tag_of_a_sweep_goes_to_mlflow():
    assert sweep_tags(["replenish", "sweep:digits"]) == {"sweep": "digits"}
    assert sweep_tags(["replenish"]) == {}


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


def test_a_server_that_does_not_answer_is_named(project, capsys):
    url = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(SystemExit) as ended:
        main(["--no-mlflow"])
    assert ended.value.code == 2
    assert f"error: PREFECT_API_URL = {url}: no answer (" in capsys.readouterr().err
    assert project.ran == []


def test_the_flow_is_loaded_without_what_draws_images() -> None:
    # Prefect loads it anew after each cancellation, before the page says Cancelled.
    code = "import sys, flows.augment; print('diffusers' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "False"
