"""From a flow's run to another clone: publish, push, pull, verify; and DVC's experiments."""

import json

import pytest
from moto.server import ThreadedMotoServer

from pipeline.folders import read_manifest, write_json, write_manifest
from pipeline.params import SECTIONS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def repository(project):
    """The project as a git repository with everything committed."""
    for who in ("AUTHOR", "COMMITTER"):
        project.environment[f"GIT_{who}_NAME"] = "Ada"
        project.environment[f"GIT_{who}_EMAIL"] = "ada@example.org"
    project.environment["DVC_SITE_CACHE_DIR"] = str(project.folder.parent / "site")
    ignored = project.folder / ".gitignore"
    ignored.write_text(ignored.read_text() + "/.prefect/\n")
    remote = project.folder.parent / "remote"
    project.run("dvc", "remote", "add", "--default", "folder", str(remote))
    commit(project, "first")
    return project


@pytest.fixture(scope="module")
def flow(repository):
    """A run of the flow; with so few seeds and steps its verdict is never to use the images."""
    repository.python("-m", "flows.augment")
    return repository


@pytest.fixture(scope="module")
def published(flow):
    """The run with the verdict overruled, published to the folder."""
    folder = flow.folder / "artifacts/evaluate"
    verdict = json.loads((folder / "verdict.json").read_text())
    write_json(folder / "verdict.json", {**verdict, "decision": "use"})
    made = read_manifest(folder)
    write_manifest(folder, made.stage, made.key, made.params, made.inputs)
    flow.python("-m", "flows.augment")
    return flow, flow.python("-m", "pipeline", "publish")


def commit(project, message):
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", message)


def clone(project, name):
    """Return a clone of the project beside it, which has git's files alone."""
    folder = project.folder.parent / name
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    copied = type(project)(folder)
    copied.environment.update(
        {k: v for k, v in project.environment.items() if k.startswith(("GIT_", "AWS_"))},
        DVC_SITE_CACHE_DIR=str(project.folder.parent / f"site-{name}"),
    )
    return copied


def assert_same_artifacts(one, other):
    for stage in SECTIONS:
        found = read_manifest(other.folder / "artifacts" / stage)
        assert found == read_manifest(one.folder / "artifacts" / stage), stage
    done = other.python("-m", "pipeline", "verify", "artifacts")
    assert "artifacts: all is well" in done.stdout


def test_a_verdict_of_do_not_use_is_not_published_but_can_be_kept(flow):
    refused = flow.python("-m", "pipeline", "publish", status=1)
    assert "error: not published, the verdict is do_not_use:" in refused.stderr
    assert "Traceback" not in refused.stderr
    kept = flow.python("-m", "pipeline", "publish", "--results-only").stdout
    name = kept.split("experiment ")[1].split(";")[0]
    assert flow.run("dvc", "exp", "list", "--name-only").stdout.split() == [name]
    assert flow.run("git", "status", "--porcelain").stdout == ""
    assert not (flow.folder / "dvc.lock").exists()


def test_what_is_published_is_clean_in_dvc_and_git_and_names_its_runs(published):
    project, done = published
    assert "files pushed (folder)" in done.stdout
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {}
    assert json.loads(project.run("dvc", "status", "--cloud", "--json").stdout) == {}
    assert project.run("git", "status", "--porcelain").stdout == ""
    message = project.run("git", "log", "-1", "--format=%B").stdout
    assert message.startswith("Publish: use, ")
    verdict = json.loads((project.folder / "artifacts/evaluate/verdict.json").read_text())
    assert verdict["sentence"] in message
    trailers = dict(line.split(": ", 1) for line in message.splitlines() if "-Run: " in line)
    assert {"MLflow-Run", "Prefect-Run"} <= set(trailers)
    tags = mlflow_runs(project)[trailers["MLflow-Run"]]["tags"]
    assert tags["prefect_flow_run_id"] == trailers["Prefect-Run"]
    assert tags["published_commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()


def test_a_repro_has_nothing_to_do_after_publish(published):
    project, _ = published
    again = project.run("dvc", "repro")
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout


def test_a_clone_pulls_the_same_digests_from_a_folder(published):
    project, _ = published
    other = clone(project, "from-folder")
    other.run("dvc", "pull")
    assert_same_artifacts(project, other)
    assert other.python("-m", "pipeline", "run", "--dry-run").stdout.count("up to date") == 7


def test_a_clone_pulls_the_same_digests_from_s3(published):
    project, _ = published
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        project.environment.update(keys, AWS_DEFAULT_REGION="us-east-1")
        code = f"import boto3; boto3.client('s3', endpoint_url='http://{host}:{port}')"
        project.python("-c", f"{code}.create_bucket(Bucket='replenish')")
        project.run("dvc", "remote", "add", "s3", "s3://replenish/store")
        project.run("dvc", "remote", "modify", "s3", "endpointurl", f"http://{host}:{port}")
        commit(project, "remote s3")
        done = project.python("-m", "pipeline", "publish", "--remote", "s3")
        assert "files pushed (s3)" in done.stdout
        assert "git: published already" in done.stdout
        other = clone(project, "from-s3")
        other.run("dvc", "pull", "--remote", "s3")
        assert_same_artifacts(project, other)
    finally:
        server.stop()


def test_pictures_are_drawn_and_a_model_is_got_by_its_name(published):
    project, _ = published
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    assert "artifacts_train_samples_step-000024.png" in page
    assert "artifacts_pretrain_samples_step-000012.png" in page
    project.run("git", "tag", "--annotate", "generator@v1.0.0", "--message", "first")
    project.run(
        "dvc", "artifacts", "get", str(project.folder), "generator", "--out", "../generator"
    )
    got = (project.folder.parent / "generator/generator.json").read_bytes()
    assert got == (project.folder / "artifacts/train/generator/generator.json").read_bytes()


def test_experiments_here_in_the_queue_and_apart_meet_in_one_mlflow(published):
    project, _ = published
    before = mlflow_runs(project)
    experiment(project, "apart", "--temp")
    experiment(project, "queued", "--queue")
    project.run("dvc", "exp", "run", "--run-all")
    experiment(project, "here")
    new = [run for key, run in mlflow_runs(project).items() if key not in before]
    assert sorted(run["name"] for run in new) == ["apart", "here", "queued"]
    assert [run["status"] for run in new] == ["FINISHED"] * 3
    root = project.folder / "mlartifacts"
    assert all(run["files"].startswith(root.as_uri()) for run in new)
    names = project.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert {"apart", "queued", "here"} <= set(names)


def experiment(project, name, *how):
    project.run("dvc", "exp", "run", *how, "--name", name, "--set-param", f"assemble.name={name}")


def mlflow_runs(project):
    """Return the runs that are no arm's: id -> what is known of it."""
    code = (
        "import json; from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
        "e = [x.experiment_id for x in c.search_experiments()];"
        "print(json.dumps({r.info.run_id: {'status': r.info.status, 'tags': r.data.tags,"
        " 'name': r.data.params.get('assemble.name'), 'files': r.info.artifact_uri}"
        " for r in c.search_runs(e) if 'mlflow.parentRunId' not in r.data.tags}))"
    )
    return json.loads(project.python("-W", "ignore", "-c", code).stdout)
