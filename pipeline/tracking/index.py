"""runs/index.jsonl: which run made which stage folder, and how long that took.

A line is a `stage_made` or `stage_failed` event of the schema. A folder is known by its content:
its digest and key stand in its manifest, whose md5 stands in DVC's list of the folder.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.folders import MANIFEST, Manifest
from pipeline.hashing import digest_json
from pipeline.tracking.lines import append_line, older_part, read_lines
from pipeline.tracking.schema import line_text, utc_now

INDEX = "index.jsonl"
INDEX_BYTES = 1 << 24  # of a part; with 600 bytes a stage, both hold 55,000 stages


class Made(BaseModel):
    """A stage folder, and the run that made it.

    Attributes:
        run_id: of the run.
        stage: the stage.
        digest: of the folder's content, as in its manifest.
        key: of the work, as in its manifest.
        manifest_md5: of the file manifest.json, as DVC lists it.
        settings_digest: of the stage's section of the params.
        artifacts: folder that it was made in.
        mlflow_run_id: empty where MLflow did not record it.
        prefect_run_id: empty where no flow ran.
        started: when.
        ended: when.
        seconds: that it took.
        resumed: did it go on from what an interrupted run left?
        numbers: name -> what the stage counted.
        memory_bytes: kind -> peak.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    stage: str
    digest: str
    key: str
    manifest_md5: str
    settings_digest: str
    artifacts: str
    mlflow_run_id: str
    prefect_run_id: str
    started: datetime
    ended: datetime
    seconds: float
    resumed: bool
    numbers: dict[str, float]
    memory_bytes: dict[str, int]


def settings_digest(section: dict[str, Any]) -> str:
    """Return the digest of a section of the params, given as `identity()` or by a manifest."""
    return digest_json(section)


def manifest_facts(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Return what a finished folder is known by.

    Raises:
        OSError: the manifest cannot be read.
    """
    content = (folder / MANIFEST).read_bytes()
    return {
        "digest": manifest.digest,
        "key": manifest.key,
        "manifest_md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "settings_digest": settings_digest(manifest.params),
    }


def add_record(logs: Path, run_id: str, stage: str, event: str, fields: dict[str, Any]) -> None:
    """Append a `stage_made` or `stage_failed` line.

    Raises:
        OSError: it cannot be written.
    """
    append_line(logs / INDEX, line_text(run_id, stage, event, fields, utc_now()), INDEX_BYTES)


def read_index(logs: Path) -> list[dict[str, Any]]:
    """Return the lines of the index, oldest first."""
    path = logs / INDEX
    return [*read_lines(older_part(path)), *read_lines(path)]


def made_folders(lines: Sequence[dict[str, Any]]) -> list[Made]:
    """Return what the lines say of folders that were made, oldest first."""
    found = []
    for line in lines:
        if line.get("event") == "stage_made" and isinstance(line.get("fields"), dict):
            try:
                found.append(Made(run_id=line["run_id"], stage=line["stage"], **line["fields"]))
            except (ValidationError, KeyError, TypeError):
                continue  # of another version
    return found
