"""Publishing a small project whose seven stage folders are fakes: what it does and refuses."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
import zc.lockfile
from fake_stages import Fake, finish, write_evaluate, write_stages
from filelock import FileLock
from typer.testing import CliRunner

from flows import publish as module
from flows.publish import Wish, app, publish
from flows.versioning import dvc, git
from pipeline.errors import InputError, StageError
from pipeline.folders import write_json
from pipeline.params import SECTIONS, Params

pytestmark = pytest.mark.slow

STAGES = {
    name: {
        "cmd": "false",  # publish must run nothing
        "deps": [f"artifacts/{SECTIONS[i - 1]}" if i else "data/raw"],
        "params": ["seed", name],
        "outs": [f"artifacts/{name}"],
    }
    for i, name in enumerate(SECTIONS)
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A committed project with finished folders, and the verdict `use`."""
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "README.md").write_text("images go here")
    (root / "params.yaml").write_text(yaml.safe_dump({name: {} for name in SECTIONS} | {"seed": 0}))
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    (root / ".gitignore").write_text("/artifacts/\n")
    write_stages(root / "artifacts")
    for name in ("assemble", "report"):
        write_json(root / "artifacts" / name / "summary.json", {})
        finish(root / "artifacts" / name, Params())
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "first")
    return root


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "ada@example.org")


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.setattr(module, "dvc_file", lambda: yaml.safe_dump({"stages": STAGES}))
    monkeypatch.setattr(module, "stale_stages", lambda params, artifacts: [])
    return root


@pytest.fixture
def remote(project, tmp_path):
    """A folder as the default remote."""
    add_remote(project, tmp_path / "remote")
    return tmp_path / "remote"


def _git(root, *arguments):
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def add_remote(root, url, *settings):
    assert dvc(root, "remote", "add", "--default", "team", str(url)).status == 0
    for name, value in settings:
        assert dvc(root, "remote", "modify", "team", name, value).status == 0
    _git(root, "commit", "--quiet", "--all", "--message", "remote")


def decide(root, decision, **fake):
    write_evaluate(root / "artifacts" / "evaluate", Fake(decision=decision, **fake))
    for name in ("assemble", "report"):
        finish(root / "artifacts" / name, Params())


def head(root):
    return git(root, "rev-parse", "HEAD").out


def run(root, **wish):
    said = []
    commit = publish(root, Wish(**wish), said.append)
    return commit, said


def test_a_run_to_be_used_is_committed_pushed_and_committed_to_git_in_that_order(project, remote):
    before = head(project)
    commit, said = run(project)
    assert said[0] == "DVC: dvc.lock and the cache hold 7 stages"
    assert said[1].endswith("files pushed (team)")
    assert said[2].startswith(f"git: {commit[:12]} Publish: use, +3.10 points (+1.20 to +5.00)")
    assert head(project) == commit
    assert git(project, "rev-parse", "HEAD~1").out == before
    assert git(project, "show", "--name-only", "--format=", "HEAD").out == "dvc.lock"
    assert git(project, "status", "--porcelain").out == ""
    assert json.loads(dvc(project, "status", "--json").out) == {}
    assert json.loads(dvc(project, "status", "--cloud", "--json").out) == {}


def test_the_message_holds_the_sentence_and_trailers_that_git_can_read(project, remote):
    run(project)
    verdict = json.loads((project / "artifacts/evaluate/verdict.json").read_text())
    message = git(project, "log", "-1", "--format=%B").out
    assert message.splitlines()[2] == verdict["sentence"]
    parsed = git(project, "log", "-1", "--format=%(trailers:only,unfold)").out
    trailers = dict(line.split(": ", 1) for line in parsed.splitlines())
    assert trailers["Decision"] == "use"
    assert trailers["Gain"] == "+3.10 points (+1.20 to +5.00)"
    assert trailers["Params-Digest"] == Params().digest()
    manifest = json.loads((project / "artifacts/train/manifest.json").read_text())
    assert trailers["Stage-Train"] == manifest["digest"]
    info = json.loads((project / "artifacts/prepare/dataset/dataset.json").read_text())
    assert trailers["Dataset-Digest"] == info["digest"]


def test_words_of_a_user_become_no_trailers(project, remote):
    path = project / "artifacts/evaluate/verdict.json"
    verdict = json.loads(path.read_text())
    verdict["sentence"] = "Use them\n\nDecision: do_not_use\x1b[31m"
    write_json(path, verdict)
    for name in ("evaluate", "assemble", "report"):
        finish(project / "artifacts" / name, Params())
    run(project, push=False)
    message = git(project, "log", "-1", "--format=%B").out
    assert message.splitlines()[2] == "Use them Decision: do_not_use\\x1b[31m"
    assert message.count("\nDecision: ") == 1


def test_a_second_time_there_is_nothing_to_commit(project, remote):
    commit, _ = run(project)
    assert run(project) == (
        None,
        [
            "DVC: dvc.lock and the cache hold 7 stages",
            "DVC: Everything is up to date. (team)",
            "git: published already, nothing to commit",
        ],
    )
    assert head(project) == commit


def test_a_dry_run_says_it_and_changes_nothing(project, remote):
    before = head(project)
    commit, said = run(project, dry_run=True)
    assert commit is None
    assert said[:2] == ["would commit 7 stages to DVC", "would push to the remote team"]
    assert "Publish: use, +3.10 points" in said[2]
    assert head(project) == before
    assert not (project / "dvc.lock").exists()
    assert not remote.exists()


def test_do_not_use_is_refused_with_its_reasons(project, remote):
    decide(project, "do_not_use")
    before = head(project)
    with pytest.raises(
        StageError, match=r"the verdict is do_not_use:\n  .*\n(.*\n)*--results-only"
    ):
        run(project)
    with pytest.raises(StageError, match="do_not_use"):
        run(project, with_care=True)
    assert head(project) == before
    assert not (project / "dvc.lock").exists()


def test_use_with_care_needs_a_word(project):
    decide(project, "use_with_care")
    with pytest.raises(StageError, match=r"use_with_care(.*\n)*.*--with-care"):
        run(project, push=False)
    commit, said = run(project, push=False, with_care=True)
    assert said[-1].startswith(f"git: {commit[:12]} Publish: use_with_care, ")


def test_results_only_keeps_an_experiment_and_leaves_the_branch_alone(project):
    decide(project, "do_not_use")
    before = head(project)
    commit, said = run(project, results_only=True)
    assert commit is None
    assert head(project) == before
    assert not (project / "dvc.lock").exists()
    assert git(project, "status", "--porcelain").out == ""
    listed = git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/{before[:2]}").out
    name = listed.rpartition("/")[2]
    assert f"kept as the experiment {name};" in said[0]
    assert "Decision: do_not_use" in git(project, "log", "-1", "--format=%B", listed).out
    assert "artifacts/evaluate" in git(project, "show", f"{listed}:dvc.lock").out


def test_a_dirty_tree_is_refused_by_name(project, remote):
    (project / "data/raw/README.md").write_text("changed")
    (project / ".gitignore").write_text("/artifacts/\n/other/\n")
    _git(project, "add", ".gitignore")
    with pytest.raises(InputError, match=r"git commit: \.gitignore, data/raw/README\.md; commit"):
        run(project)


def test_changed_params_are_committed_when_asked(project, remote):
    (project / "params.yaml").write_text((project / "params.yaml").read_text() + "# a note\n")
    with pytest.raises(InputError, match=r"params\.yaml; commit it, or give --with-params"):
        run(project)
    run(project, with_params=True)
    shown = git(project, "show", "--name-only", "--format=", "HEAD").out.splitlines()
    assert shown == ["dvc.lock", "params.yaml"]
    assert git(project, "status", "--porcelain").out == ""


def test_files_that_git_does_not_know_are_refused(project, remote):
    _git(project, "rm", "--quiet", "--cached", "params.yaml")
    _git(project, "commit", "--quiet", "--message", "lost")
    with pytest.raises(InputError, match=r"git does not know params\.yaml"):
        run(project)


def test_stale_stages_are_refused(project, remote, monkeypatch):
    monkeypatch.setattr(module, "stale_stages", lambda params, artifacts: ["train", "synthesize"])
    with pytest.raises(InputError, match=r"from the stage `train` on; `replenish run`"):
        run(project)


def test_a_dvc_yaml_that_is_not_the_codes_is_refused(project, remote):
    stages = {**STAGES, "train": {**STAGES["train"], "deps": []}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(InputError, match=r"the stage `train` is not what the code says"):
        run(project)


def test_damaged_artifacts_are_refused(project, remote):
    path = project / "artifacts/train/curve.csv"
    path.write_text(path.read_text() + " ")
    with pytest.raises(StageError, match=r"damaged(.*\n)*.*train: changed: curve\.csv"):
        run(project)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda root: shutil.rmtree(root / ".git"), "no git repository"),
        (lambda root: shutil.rmtree(root / ".dvc"), "no DVC project"),
        (lambda root: (root / "dvc.yaml").unlink(), r"no dvc\.yaml; publish in the project folder"),
        (lambda root: _git(root, "update-ref", "-d", "HEAD"), "has no commit"),
    ],
)
def test_without_repositories_it_says_what_is_missing(project, broken, message):
    broken(project)
    with pytest.raises(InputError, match=message):
        run(project)


def test_an_unknown_author_is_asked_for(project, remote, monkeypatch):
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "")
    with pytest.raises(InputError, match=r"who you are; `git config user\.name`"):
        run(project)


def test_a_remote_is_needed_and_has_to_exist(project, tmp_path):
    with pytest.raises(InputError, match=r"no DVC remote to push to; `dvc remote add --default"):
        run(project)
    add_remote(project, tmp_path / "remote")
    with pytest.raises(InputError, match=r"no DVC remote 'other' \(there are: team\)"):
        run(project, remote="other")


def test_a_remote_that_cannot_be_written_leaves_no_commit_and_a_second_try_works(project, tmp_path):
    (tmp_path / "place").write_text("a file where the remote's folder should be")
    add_remote(project, tmp_path / "place" / "remote")
    before = head(project)
    with pytest.raises(StageError, match=r"`dvc push` to the remote 'team' failed(.*\n)*.*rights"):
        run(project)
    assert head(project) == before
    assert git(project, "diff", "--cached", "--name-only").out == ""
    (tmp_path / "place").unlink()
    commit, said = run(project)
    assert head(project) == commit
    assert "files pushed" in said[1]


def test_a_hook_that_refuses_leaves_the_index_alone_and_a_second_try_works(project, remote):
    hook = project / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(StageError, match=r"did not commit dvc\.lock: not today"):
        run(project)
    assert git(project, "diff", "--cached", "--name-only").out == ""
    hook.unlink()
    commit, said = run(project)
    assert said[1] == "DVC: Everything is up to date. (team)"
    assert head(project) == commit


def test_another_dvc_command_at_work_is_waited_for_and_named(project, remote):
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    held = zc.lockfile.LockFile(str(project / ".dvc/tmp/lock"))
    try:
        with pytest.raises(InputError, match="another DVC command is at work"):
            run(project)
    finally:
        held.close()
    assert run(project)[0] == head(project)


def test_a_run_at_work_is_not_published(project, remote):
    with (
        FileLock(project / "artifacts/.work/train.lock"),
        pytest.raises(InputError, match="a run is at work on the stage `train`"),
    ):
        run(project)


def test_raw_data_that_nothing_versions_is_told_and_changed_data_refused(project, remote):
    (project / "data/raw/mine").mkdir()
    (project / "data/raw/mine/a.txt").write_text("one")
    note = next(line for line in run(project, dry_run=True)[1] if line.startswith("note"))
    assert "data/raw are neither in git nor in DVC" in note
    assert dvc(project, "add", "data/raw/mine").status == 0
    _git(project, "add", "data")
    _git(project, "commit", "--quiet", "--message", "data")
    assert run(project)[1][0].startswith("DVC: ")
    (project / "data/raw/mine/a.txt").unlink()
    (project / "data/raw/mine/a.txt").write_text("two")
    with pytest.raises(InputError, match=r"data/raw/mine\.dvc: the data differs"):
        run(project)


def test_the_command_has_its_options_and_raises_for_the_command_line(project, monkeypatch):
    monkeypatch.chdir(project)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    for option in ("--remote", "--no-push", "--with-care", "--with-params", "--results-only"):
        assert option in shown.output
    done = CliRunner().invoke(app, ["--no-push"])
    assert done.exit_code == 0
    assert "Publish: use, +3.10 points" in done.output
    decide(project, "do_not_use")
    refused = CliRunner().invoke(app, ["--no-push"])
    assert isinstance(refused.exception, StageError)
