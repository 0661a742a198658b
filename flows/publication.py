"""What a published run says of itself: the message of its git commit, and MLflow's labels."""

from dataclasses import dataclass
from pathlib import Path

from flows.versioning import LOCK
from pipeline.hashing import digest_file
from pipeline.params import Params
from pipeline.tracking.console import printable
from pipeline.tracking.facts import read_verdict
from pipeline.tracking.index import made_folders, read_index
from pipeline.tracking.lineage import manifests, result_tags
from pipeline.tracking.memory import run_memory
from pipeline.tracking.reading import as_list, number, pair, read_object


@dataclass(frozen=True)
class RunIds:
    """The names of the run that gave the verdict; empty where it is not known.

    Attributes:
        own: in logs and on shards.
        mlflow: in MLflow.
        prefect: in Prefect.
    """

    own: str = ""
    mlflow: str = ""
    prefect: str = ""


def run_ids(root: Path, artifacts: Path, params: Params) -> RunIds:
    """Return who made the verdict: from the index of runs, else from MLflow if that answers."""
    found = manifests(artifacts).get("evaluate")
    digest = found.digest if found is not None else ""
    made = [
        one
        for one in made_folders(read_index(root / "runs"))
        if one.stage == "evaluate" and one.digest == digest
    ]
    own, mlflow, prefect = (
        (made[-1].run_id, made[-1].mlflow_run_id, made[-1].prefect_run_id) if made else ("", "", "")
    )
    mlflow = mlflow or run_memory(artifacts).recall(params.digest()) or ""
    return RunIds(own, mlflow, prefect or _prefect_run(root, mlflow))


def commit_message(artifacts: Path, params: Params, ids: RunIds) -> str:
    """Return the commit message: verdict in words, then figures and digests as git trailers.

    Args:
        artifacts: the finished folders.
        params: that they were made with.
        ids: of the run that made them.
    """
    verdict = read_verdict(artifacts)
    low, high = (_points(end) for end in pair(verdict.get("interval_points")))
    gain = f"{_points(number(verdict.get('gain_points')))} points ({low} to {high})"
    decision = str(verdict.get("decision"))
    lines = [f"Publish: {decision}, {gain}", "", str(verdict.get("sentence", "")), ""]
    reasons = [f"- {one}" for one in as_list(verdict.get("reasons"))]
    lines += [*reasons, ""] if reasons else []
    dataset = read_object(artifacts / "assemble" / "dataset" / "dataset.json")
    trailers = {
        "Decision": decision,
        "Gain": gain,
        "Params-Digest": params.digest(),
        "Assembled-Digest": dataset.get("digest"),
        **{name.replace("_", "-").title(): value for name, value in result_tags(artifacts).items()},
        **{f"Stage-{name.title()}": one.digest for name, one in manifests(artifacts).items()},
        "Replenish-Run": ids.own,
        "MLflow-Run": ids.mlflow,
        "Prefect-Run": ids.prefect,
    }
    lines += [f"{name}: {value}" for name, value in trailers.items() if value]
    # One line each: words of a user, such as a class name, are no trailer of ours.
    return "\n".join(" ".join(printable(line).split()) for line in lines) + "\n"


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def tell_mlflow(root: Path, run_id: str, commit: str) -> None:
    """Label an MLflow run with the commit and the dvc.lock that publish it, if MLflow is there."""
    if not run_id:
        return
    try:
        from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri

        client = MlflowClient(default_tracking_uri(root))
        client.set_tag(run_id, "published_commit", commit)
        client.set_tag(run_id, "dvc_lock_sha256", digest_file(root / LOCK))
    except Exception:  # it is published; MLflow's label is a convenience
        return


def _prefect_run(root: Path, run_id: str) -> str:
    if not run_id:
        return ""
    try:
        from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri, find_run

        run = find_run(MlflowClient(default_tracking_uri(root)), run_id)
    except Exception:  # whatever MLflow raises: the message does without
        return ""
    return "" if run is None else str(run.data.tags.get("prefect_flow_run_id", ""))
