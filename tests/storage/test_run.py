"""Runs with artifacts at a URL give what a local run gives, and the command line knows URLs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.folders import read_manifest
from pipeline.params import SECTIONS, Params, load_params
from pipeline.stages.running import run_stage, run_stage_at, stale_stages_at
from pipeline.storage import transfers
from pipeline.storage.artifacts import open_artifacts
from pipeline.storage.locations import Location, open_location
from pipeline.storage.mirror import read_record
from pipeline.verification import verify_at

ROOT = Path(__file__).parents[2]
TINY = (
    "prepare.imbalance={max: 12, min: 6}",
    "prepare.validation_fraction=0.1",
    "pretrain.base=none",
    "train.steps=8",
    "train.batch_images=8",
    "train.base_channels=8",
    "train.checks=1",
    "train.check_images=8",
    "train.sheet_images_per_class=1",
    "synthesize.images_per_class=2",
    "synthesize.sampler_steps=2",
    "synthesize.shard_images=4",
    "synthesize.max_rounds=1",
    "synthesize.judge_steps=10",
    "synthesize.filter_share=0.0",
    "evaluate.arms=[real, real_augmented, mixed]",
    "evaluate.mixed_shares=[0.5]",
    "evaluate.seeds=2",
    "evaluate.steps=4",
    "evaluate.base_channels=8",
    "evaluate.bootstrap_resamples=100",
    "report.images_per_class=2",
    "report.examples=2",
)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml", TINY)


@pytest.fixture(scope="module")
def plain(params: Params, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of each stage of a run in a local folder."""
    from conftest import RecordingTracker

    folder = tmp_path_factory.mktemp("plain")
    for name in SECTIONS:
        run_stage(name, params, folder, RecordingTracker())
    return {name: read_manifest(folder / name).digest for name in SECTIONS}  # type: ignore[union-attr]


def digests(location: Location) -> dict[str, str]:
    found = {name: read_record(location, name) for name in SECTIONS}
    return {name: record.manifest.digest for name, record in found.items() if record is not None}


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_at_a_url_has_the_digests_of_a_local_one(
    params: Params,
    plain: dict[str, str],
    tmp_path: Path,
    recording_tracker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = "memory://store/run"
    location = open_location(url)
    assert stale_stages_at(params, url) == list(SECTIONS)
    # The first stages on one machine, the others on another: the store is all they share.
    for machine, names in (("one", SECTIONS[:3]), ("two", SECTIONS)):
        recording_tracker.notes.clear()
        with open_artifacts(url, tmp_path / machine) as place:
            for name in names:
                run_stage_at(name, params, place, recording_tracker)
    assert digests(location) == plain
    assert [note for note in recording_tracker.notes if "up to date" in note] == [
        f"{name}: up to date ({place.folder / name})" for name in SECTIONS[:3]
    ]
    assert stale_stages_at(params, url) == []
    found = verify_at(url)
    assert found.problems == []
    assert str(tmp_path / "cache") not in "".join(found.checked)
    assert list((tmp_path / "cache" / "replenish" / "artifacts").iterdir()) == []

    record = read_record(location, "evaluate")
    assert record is not None
    digest = record.manifest.files["verdict.json"]
    transfers.write(location, location.path("evaluate", "objects", digest), b"{}")
    assert verify_at(url).problems == [
        f"{url}/evaluate: damaged: changed: verdict.json; delete {url}/evaluate and run again"
    ]
    transfers.remove(location, [location.path("evaluate", "objects", digest)])
    assert stale_stages_at(params, url) == ["evaluate", "assemble", "report"]


def replenish(folder: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_command_line_runs_verifies_and_copies_at_a_url(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("prepare:\n  imbalance: {max: 12, min: 6}\n")
    url = f"file://{tmp_path}/store"
    told = replenish(tmp_path, "prepare", "--artifacts", url, "--cache", "mirror", "--no-mlflow")
    assert f"sending to {url}/prepare" in told
    assert (tmp_path / "store" / "prepare" / "stored.json").is_file()
    assert "prepare     up to date" in replenish(tmp_path, "run", "--artifacts", url, "--dry-run")
    assert f"{url}: all is well" in replenish(tmp_path, "verify", url)
    assert "Fetched into there: prepare" in replenish(tmp_path, "fetch", url, "there")
    assert "there: all is well" in replenish(tmp_path, "verify", "there")
    copy = f"file://{tmp_path}/copy"
    assert f"Sent to {copy}: prepare" in replenish(tmp_path, "send", "there", copy)
    assert read_record(open_location(copy), "prepare") == read_record(open_location(url), "prepare")
    assert not (tmp_path / "store" / "run.lock").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--artifacts", "ftp://host/x"), "error: ftp://host/x: unknown scheme `ftp`"),
        (("train", "--artifacts", "s3://me:hunter2@b/x"), "error: s3://b/x: no place for user"),
        (("track", "--artifacts", "s3://b/x"), "error: s3:/b/x: a local folder is needed here"),
        (("evaluate", "--controls", "--artifacts", "s3://b/x"), "a local folder is needed here"),
        (("verify", "file:///nowhere/x"), "error: file:///nowhere/x: holds no finished stage"),
        (("verify", "file:///nowhere/x", "--artifacts", "y"), "so there is no signature"),
        (("send", "nowhere", "file:///x/y"), "nowhere: holds no finished stage; give the art"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    told = replenish(tmp_path, *arguments, status=2)
    assert message in told
    assert "hunter2" not in told
    assert len(told.strip().splitlines()) == 1
