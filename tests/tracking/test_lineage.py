import subprocess

from tracking.full_run import DATASET, write_run

from pipeline.hashing import digest_file
from pipeline.tracking.lineage import (
    git_facts,
    manifests,
    result_tags,
    results_digest,
    run_tags,
    settings_of,
)


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_facts_name_the_commit_and_whether_the_tree_is_dirty(tmp_path):
    assert git_facts(tmp_path / "none") == {}
    git(tmp_path, "init", "-q")
    assert git_facts(tmp_path) == {}
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    (tmp_path / "untracked").write_text("1")
    clean = git_facts(tmp_path)
    assert clean["git_dirty"] == "false"
    assert len(clean["git_commit"]) == 40
    (tmp_path / "a").write_text("2")
    assert git_facts(tmp_path) == {**clean, "git_dirty": "true"}


def test_without_git_there_are_no_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_facts(tmp_path) == {}


def test_tags_hold_the_digest_of_dvc_lock(tmp_path):
    (tmp_path / "dvc.lock").write_text("x")
    assert run_tags(tmp_path)["dvc_lock_sha256"] == digest_file(tmp_path / "dvc.lock")


def test_digests_of_results_name_data_generator_and_the_whole(tmp_path):
    write_run(tmp_path)
    tags = result_tags(tmp_path)
    assert tags["dataset_digest"] == DATASET["digest"]
    assert tags["generator_digest"] == "9" * 64
    assert tags["synthetic_digest"] == "5" * 64
    assert tags["results_digest"] == results_digest(manifests(tmp_path))
    assert result_tags(tmp_path / "none") == {}


def test_the_digest_of_the_results_follows_every_stage(tmp_path):
    before = results_digest(manifests(write_run(tmp_path / "one")))
    assert results_digest(manifests(write_run(tmp_path / "two"))) == before
    (tmp_path / "two" / "report" / "manifest.json").unlink()
    assert results_digest(manifests(tmp_path / "two")) != before


def test_settings_are_flat_as_params_are(tmp_path):
    write_run(tmp_path, params={"train": {"steps": 7, "augment": ["flip"], "base": None}})
    assert settings_of(manifests(tmp_path)) == {
        "train.steps": 7,
        "train.augment": '["flip"]',
        "train.base": None,
    }
