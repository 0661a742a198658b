"""What a finished run shows in the Prefect page: verdict, arms, and where to look further."""

from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pipeline.tracking.console import escape_markdown
from pipeline.tracking.facts import arms_table, read_verdict
from pipeline.tracking.reading import as_list


def show_results(artifacts: Path, mlflow_run_id: str, run_id: str = "") -> None:
    """Create the artifacts `verdict`, `arms` and `links` of the flow run at work."""
    verdict = read_verdict(artifacts)
    if verdict:
        create_markdown_artifact(
            markdown=verdict_markdown(verdict), key="verdict", description="Did it help?"
        )
        create_table_artifact(
            table=[dict(row) for row in arms_table(verdict)],
            key="arms",
            description="Percent, mean +- sd over seeds; the test split is real",
        )
    create_markdown_artifact(
        markdown=links_markdown(artifacts, mlflow_run_id, run_id),
        key="links",
        description="Where to look",
    )


def verdict_markdown(verdict: dict[str, Any]) -> str:
    """Return the verdict, its reasons and its table of classes as Markdown."""
    lines = [f"**{escape_markdown(verdict.get('sentence', ''))}**", ""]
    reasons = as_list(verdict.get("reasons"))
    lines += [*(f"- {escape_markdown(reason)}" for reason in reasons), *([""] if reasons else [])]
    columns = ("name", "training_images", "gain_points", "low_points", "high_points")
    lines.append("| class | training images | gain, points | low | high |")
    lines.append("| --- | --- | --- | --- | --- |")
    for row in as_list(verdict.get("per_class")):
        cells = (row.get(column, "") for column in columns)
        shown = (f"{c:.1f}" if isinstance(c, float) else escape_markdown(c) for c in cells)
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _link(path: Path) -> str:
    # A browser may refuse to follow a file link from a page; the path is there to be copied.
    return f"[{escape_markdown(path)}]({path.as_uri()})"


def links_markdown(artifacts: Path, mlflow_run_id: str, run_id: str = "") -> str:
    """Return where the report, the dataset and the MLflow run are, as Markdown."""
    root = artifacts.absolute()
    lines = [
        f"- Report: {_link(root / 'report' / 'index.html')}",
        f"- Dataset: {_link(root / 'assemble' / 'dataset')}",
    ]
    if mlflow_run_id:
        lines.append(
            f"- MLflow run: {escape_markdown(mlflow_run_id)} in the experiment `replenish` "
            "(`make ui` opens the page)"
        )
    if run_id:
        lines.append(f"- Run id, in logs, shards and MLflow: {escape_markdown(run_id)}")
    return "\n".join(lines)
