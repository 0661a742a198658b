"""What ties a run to where it came from: git, dvc.lock, and the digests of data and generator."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.folders import Manifest, read_manifest
from pipeline.hashing import digest_file, digest_json
from pipeline.params import SECTIONS
from pipeline.tracking.reading import finished, read_object
from pipeline.tracking.tracker import Scalar

_GIT_SECONDS = 10


def git_facts(root: Path) -> dict[str, str]:
    """Return `git_commit` and `git_dirty` ("true" or "false") of `root`; nothing if no repository.

    Tracked files alone make a tree dirty.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    facts = {"git_commit": commit}
    if changed is not None:
        facts["git_dirty"] = "true" if changed else "false"
    return facts


def run_tags(root: Path) -> dict[str, str]:
    """Return the labels that tie a run to the project folder: git facts and dvc.lock's sha256."""
    tags = git_facts(root)
    try:
        tags["dvc_lock_sha256"] = digest_file(root / "dvc.lock")
    except OSError:
        pass
    return tags


def result_tags(artifacts: Path, stages: Sequence[str] = SECTIONS) -> dict[str, str]:
    """Return the digests of what finished folders hold; those that are missing are left out.

    `dataset_digest` is of the prepared rows, `synthetic_digest` of the accepted images,
    `generator_digest` of the network, `classes_digest` of the class names, `results_digest` of
    all finished folders.
    """
    found = manifests(artifacts)
    tags = {"results_digest": results_digest(found)} if found else {}
    prepared = read_object(artifacts / "prepare" / "dataset" / "dataset.json")
    if "prepare" in found and "prepare" in stages:
        tags["dataset_digest"] = str(prepared.get("digest") or "")
        if isinstance(classes := prepared.get("classes"), list):
            tags["classes_digest"] = digest_json(classes)
    if "synthesize" in found and "synthesize" in stages:
        accepted = read_object(artifacts / "synthesize" / "accepted" / "dataset.json")
        tags["synthetic_digest"] = str(accepted.get("digest") or "")
    if "train" in found and "train" in stages:
        summary = read_object(artifacts / "train" / "summary.json")
        tags["generator_digest"] = str(summary.get("generator_digest") or "")
    return {name: value for name, value in tags.items() if value}


def manifests(artifacts: Path) -> dict[str, Manifest]:
    """Return stage -> manifest of the finished folders, in the order of the stages."""
    found: dict[str, Manifest] = {}
    for name in SECTIONS:
        if finished(artifacts / name, name):
            try:
                manifest = read_manifest(artifacts / name)
            except (StageError, OSError):
                continue
            if manifest is not None:
                found[name] = manifest
    return found


def results_digest(found: dict[str, Manifest]) -> str:
    """Return a digest that two sets of finished folders share if they are equal."""
    return digest_json({name: [one.key, one.digest] for name, one in found.items()})


def settings_of(found: dict[str, Manifest]) -> dict[str, Scalar]:
    """Return the params that the folders were made with, as `Params.flat` would."""
    return {
        f"{name}.{key}": _scalar(value)
        for name, manifest in found.items()
        for key, value in manifest.params.items()
    }


def _scalar(value: Any) -> Scalar:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _git(root: Path, *arguments: str) -> str | None:
    # A repository's own settings must not start a program here, nor git wait for a lock.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - git, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
