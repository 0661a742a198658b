import json
from types import SimpleNamespace

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.states import Completed, Failed

import flows.points as points_module
import flows.sweep as module
from flows.points import Point, borrow, grid
from flows.sweep import sweep
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest, write_manifest
from pipeline.params import SECTIONS, Params
from pipeline.tracking.tracker import NullTracker


@pytest.fixture
def params_file(tmp_path):
    (tmp_path / "params.yaml").write_text("train:\n  steps: 7\n")
    return tmp_path / "params.yaml"


def axes(**given):
    return {"seeds": [], "synthetic_shares": [], "images_per_class": [], "guidance": [], **given}


def test_the_grid_is_the_product_of_its_axes(params_file):
    found = grid(
        params_file,
        ("train.steps=9",),
        axes(seeds=[0, 1], synthetic_shares=[0.25], guidance=["auto", 2.0]),
        4,
    )
    assert [point.name for point in found] == [
        "seed-0_share-0.25_guidance-auto",
        "seed-0_share-0.25_guidance-2.0",
        "seed-1_share-0.25_guidance-auto",
        "seed-1_share-0.25_guidance-2.0",
    ]
    last = found[-1].params
    assert (last.seed, last.evaluate.mixed_shares, last.synthesize.guidance) == (1, (0.25,), 2.0)
    assert last.train.steps == 9


def test_a_grid_above_the_bound_is_refused_with_its_shape(params_file):
    with pytest.raises(InputError, match=r"2 seeds x 3 guidance = 6 runs, more than max_runs = 5"):
        grid(params_file, (), axes(seeds=[0, 1], guidance=[1.0, 1.5, 2.0]), 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (axes(), "no values; give some of seeds"),
        (axes(guidance=[1, 1.0]), "guidance has 1.0 twice"),
    ],
)
def test_grids_that_mean_nothing_are_refused(params_file, given, message):
    with pytest.raises(InputError, match=message):
        grid(params_file, (), given, 5)


def test_a_point_that_is_not_allowed_stops_the_sweep_before_any_work(params_file):
    with pytest.raises(InputError, match=r"label_dropout = 0 never trains the null class"):
        grid(params_file, ("train.label_dropout=0",), axes(guidance=[1.0, 2.0]), 5)


class Keyed:
    """A stage whose key is a param and its inputs' digests."""

    def __init__(self, name, key):
        self.name, self.key = name, key

    def is_current(self, _section, inputs, out):
        found = read_manifest(out)
        digests = {name: read_manifest(path) for name, path in inputs.items()}
        return found is not None and found.key == self.key and all(digests.values())


def test_a_point_takes_over_what_another_has_made_from_the_same_params(tmp_path, monkeypatch):
    mine, other = tmp_path / "mine", tmp_path / "other"
    for name in SECTIONS:
        folder = other / name
        folder.mkdir(parents=True)
        (folder / "data").write_text(name)
        write_manifest(folder, name, f"key of {name}", {}, {})
    # synthesize has other params here: it and what follows have to be done.
    monkeypatch.setattr(
        points_module,
        "load_stage",
        lambda name: Keyed(name, "another" if name == "synthesize" else f"key of {name}"),
    )
    point = Point("mine", {}, (), Params())
    assert borrow(point, mine, [mine, other], NullTracker()) == ["prepare", "pretrain", "train"]
    assert (mine / "train" / "data").read_text() == "train"
    assert read_manifest(mine / "train") == read_manifest(other / "train")
    assert sorted(path.name for path in mine.iterdir()) == [".work", "prepare", "pretrain", "train"]
    assert list((mine / ".work").iterdir()) == []
    assert borrow(point, mine, [mine, other], NullTracker()) == []


@pytest.fixture
def sweeping(project, monkeypatch):
    """A project whose points count as finished once they have a report."""
    monkeypatch.setattr(module, "borrow", lambda *_: [])
    monkeypatch.setattr(
        module, "stale_stages", lambda _, folder: [] if (folder / "report").is_dir() else ["report"]
    )
    return project


def table_of(flow_name):
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort="START_TIME_DESC", limit=20)
        flow_id = next(
            f.id for f in (client.read_flow(r.flow_id) for r in runs) if f.name == flow_name
        )
        run = next(r for r in runs if r.flow_id == flow_id)
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return json.loads(found[0].data), run


def test_a_sweep_runs_each_point_in_its_folder_and_shows_the_verdicts(sweeping):
    outcome = sweep(seeds=[3, 4], guidance=[1.0], mlflow=False)
    assert outcome["points"] == {"seed-3_guidance-1.0": "done", "seed-4_guidance-1.0": "done"}
    assert sweeping.names == [*SECTIONS, *SECTIONS]
    assert [params.seed for name, params, _ in sweeping.ran if name == "train"] == [3, 4]
    rows, run = table_of("sweep")
    assert [row["seeds"] for row in rows] == [3, 4]
    assert rows[0]["decision"] == "use"
    assert rows[0]["gain, points"] == 3.0
    with get_client(sync_client=True) as client:
        children = [
            one for one in client.read_flow_runs(limit=20) if "sweep:sweep" in (one.tags or [])
        ]
    assert {"sweep: seed-3_guidance-1.0", "sweep: seed-4_guidance-1.0"} <= {
        one.name for one in children
    }
    assert all(one.parent_task_run_id for one in children)
    assert run.state.is_completed()


def test_a_failed_point_does_not_stop_the_others_and_the_next_sweep_goes_on_with_it(sweeping):
    sweeping.failures["train"] = [StageError("diverged")]
    with pytest.raises(StageError, match=r"1 of 2 runs failed; .* seed-0: Failed: diverged"):
        sweep(seeds=[0, 1], mlflow=False)
    rows, _ = table_of("sweep")
    assert [row["outcome"] for row in rows] == ["Failed: diverged", "done"]
    sweeping.ran.clear()
    outcome = sweep(seeds=[0, 1], mlflow=False)
    assert outcome["points"] == {"seed-0": "done", "seed-1": "up to date"}
    assert sweeping.names == list(SECTIONS)


def test_two_sweeps_in_one_folder_are_refused(sweeping):
    work = sweeping.root / "artifacts" / "sweep" / ".work"
    work.mkdir(parents=True)
    with (
        FileLock(work / "flow.lock"),
        pytest.raises(InputError, match="another flow run is at work in this folder"),
    ):
        sweep(seeds=[0], mlflow=False)
    assert sweeping.ran == []


def test_too_many_points_are_refused_before_any_work(sweeping):
    with pytest.raises(InputError, match="3 seeds = 3 runs, more than max_runs = 2"):
        sweep(seeds=[0, 1, 2], max_runs=2, mlflow=False)
    assert sweeping.ran == []


def test_through_a_deployment_each_point_is_started_once_and_waited_for(sweeping, monkeypatch):
    started = []
    states = {"a": [None, Completed()], "b": [Failed(message="no disk")]}

    def start(deployment, *, parameters, idempotency_key, **_):
        name = "ab"[len(started)]
        started.append((deployment, parameters["artifacts"], idempotency_key))
        return SimpleNamespace(id=name, state=None)

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read_flow_run(self, name):
            waiting = states[name]
            return SimpleNamespace(state=waiting.pop(0) if len(waiting) > 1 else waiting[0])

    monkeypatch.setattr(module, "_need_free_pool", lambda _: None)
    monkeypatch.setattr(module, "run_deployment", start)
    monkeypatch.setattr(module, "get_client", lambda **_: Client())
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    with pytest.raises(StageError, match=r"1 of 2 runs failed; .* seed-1: Failed: no disk"):
        sweep(seeds=[0, 1], through="augment/on-demand", mlflow=False)
    assert [one[:2] for one in started] == [
        ("augment/on-demand", "artifacts/sweep/seed-0"),
        ("augment/on-demand", "artifacts/sweep/seed-1"),
    ]
    keys = [key for _, _, key in started]
    assert keys[0].endswith("/seed-0")
    assert keys[0].partition("/")[0] == keys[1].partition("/")[0] != ""


def test_a_deployment_that_is_not_there_or_has_no_worker_is_refused(sweeping):
    with pytest.raises(InputError, match="through = augment/none: no such deployment"):
        sweep(seeds=[0], through="augment/none", mlflow=False)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="idle", type="process"))
        flow_id = client.create_flow_from_name("augment")
        client.create_deployment(flow_id, "idle", work_pool_name="idle")
    with pytest.raises(InputError, match="work pool idle: no worker is online"):
        sweep(seeds=[0], through="augment/idle", mlflow=False)
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("idle", "someone")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(module, "_through", lambda waiting, *_: {p.name: "done" for p in waiting})
        assert sweep(seeds=[9], through="augment/idle", mlflow=False)["points"] == {
            "seed-9": "done"
        }
