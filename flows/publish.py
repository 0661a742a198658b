"""`replenish publish`: commit what a run made to DVC and git, where the verdict allows it.

Nothing runs again. What a flow or `replenish run` left in artifacts/ goes into DVC's cache and
dvc.lock, is pushed to a remote, and dvc.lock is committed to git with the verdict as its message.
The git commit comes last: whatever fails before it leaves no commit that others could not pull.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from filelock import FileLock, Timeout

from flows import versioning
from flows.publication import commit_message, run_ids, tell_mlflow
from flows.versioning import LOCK
from pipeline.dag import dvc_file
from pipeline.errors import InputError, StageError
from pipeline.folders import WORK
from pipeline.params import SECTIONS, Params, load_params
from pipeline.stages.running import stale_stages
from pipeline.tracking.console import printable
from pipeline.tracking.facts import read_verdict
from pipeline.tracking.lineage import result_tags
from pipeline.tracking.reading import as_list
from pipeline.verification import verify

ARTIFACTS, PARAMS = "artifacts", "params.yaml"  # what dvc.yaml names; DVC knows no others
_NAMED = 5  # files that an error names


@dataclass(frozen=True)
class Wish:
    """What to publish, and how.

    Attributes:
        remote: DVC remote to push to; None is the default one.
        push: push to the remote before the git commit?
        with_care: publish a verdict `use_with_care`, too?
        with_params: commit a changed params.yaml as well?
        results_only: keep the run as a DVC experiment instead, whatever the verdict?
        dry_run: check everything and stop?
    """

    remote: str | None = None
    push: bool = True
    with_care: bool = False
    with_params: bool = False
    results_only: bool = False
    dry_run: bool = False


def publish(root: Path, wish: Wish, say: Callable[[str], None]) -> str | None:
    """Publish what stands in `root`/artifacts; return the git commit, or None without a new one.

    Args:
        root: the project folder, with dvc.yaml.
        wish: what to do.
        say: is told each step, one line.

    Raises:
        InputError: no git or DVC repository, changed or untracked files, stale or missing stages,
            no such remote, or another run or DVC command at work.
        StageError: the verdict does not allow it, the artifacts are damaged, or a push or commit
            failed; once mended, a second call goes on.
    """
    artifacts = root / ARTIFACTS
    versioning.need_repositories(root)
    params = load_params(root / PARAMS)
    with _no_run_at_work(artifacts):
        _need_current(root, params)
        verdict = read_verdict(artifacts)
        if not wish.results_only:
            _need_permission(verdict, wish.with_care)
            _need_clean(root, wish.with_params)
        remote = None
        if wish.push and not wish.results_only:
            remote = versioning.find_remote(root, wish.remote)
        findings = verify(artifacts)
        if findings.problems:
            told = "\n".join(findings.problems)
            raise StageError(f"{artifacts}: damaged; run the stage again:\n{told}")
        ids = run_ids(root, artifacts, params)
        message = commit_message(artifacts, params, ids)
        if wish.results_only:
            _keep_results(root, artifacts, message, wish.dry_run, say)
            return None
        files = [LOCK, PARAMS] if wish.with_params else [LOCK]
        _tell_raw_data(root, params, say)
        if wish.dry_run:
            say(f"would commit {len(SECTIONS)} stages to DVC")
            say(f"would push to the remote {remote}" if remote else "would push nothing")
            say(f"would commit {' and '.join(files)} to git, with this message:\n\n{message}")
            return None
        _into_dvc(root)
        say(f"DVC: {LOCK} and the cache hold {len(SECTIONS)} stages")
        if remote:
            say(f"DVC: {versioning.push(root, remote)} ({remote})")
        commit = versioning.commit(root, files, message)
    if commit is None:
        say("git: published already, nothing to commit")
        return None
    say(f"git: {commit[:12]} {message.splitlines()[0]}")
    tell_mlflow(root, ids.mlflow, commit)
    return commit


def _need_permission(verdict: Mapping[str, Any], with_care: bool) -> None:
    decision = verdict.get("decision")
    if decision == "use" or (decision == "use_with_care" and with_care):
        return
    why = [verdict.get("sentence", "it names no decision"), *as_list(verdict.get("reasons"))]
    told = printable("\n".join(f"  {one}" for one in why))
    remedy = (
        "if you have looked at that and want it all the same: --with-care"
        if decision == "use_with_care"
        else "--results-only keeps the run as a DVC experiment, beside the published dataset"
    )
    raise StageError(f"not published, the verdict is {decision}:\n{told}\n{remedy}")


def _need_current(root: Path, params: Params) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8")).get("stages", {})
    for name, wanted in yaml.safe_load(dvc_file())["stages"].items():
        found = stages.get(name, {})
        if any(found.get(part) != wanted[part] for part in ("deps", "params", "outs")):
            raise InputError(
                f"dvc.yaml: the stage `{name}` is not what the code says; `make dvc.yaml`, commit "
                "it, and publish again"
            )
    stale = stale_stages(params, root / ARTIFACTS)
    if stale:
        raise InputError(
            f"{root / ARTIFACTS}: not made from this code, data and params.yaml, from the stage "
            f"`{stale[0]}` on; `replenish run`, or write the values that the run had (--set, the "
            "flow's form) into params.yaml"
        )


def _need_clean(root: Path, with_params: bool) -> None:
    ours = {LOCK, PARAMS} if with_params else {LOCK}
    changed = [name for name in versioning.changed_files(root) if name not in ours]
    if changed:
        hint = ", or give --with-params" if changed == [PARAMS] else ""
        raise InputError(f"changed since the last git commit: {_some(changed)}; commit it{hint}")
    stages = yaml.safe_load(dvc_file())["stages"].values()
    sources = {dep for one in stages for dep in one["deps"] if dep.startswith("pipeline/")}
    lacking = versioning.untracked(root, ["dvc.yaml", PARAMS, *sources])
    if lacking:
        raise InputError(f"git does not know {_some(lacking)}, so a clone would lack it; add it")
    # `dvc commit` below is for the stages: data that was added and changed since is the user's.
    others = versioning.changed_data(root)
    if others:
        raise InputError(
            f"{_some(others)}: the data differs from what is recorded; `dvc add` it anew (or "
            "`dvc checkout` it), commit, and publish again"
        )


def _into_dvc(root: Path) -> None:
    ran = versioning.dvc(root, "commit", "--force", *SECTIONS)
    if ran.status:
        raise StageError(f"`dvc commit` failed: {ran.told}\nmend that and publish again")
    differing = versioning.dvc_status(root)
    if differing:
        raise StageError(
            f"{_some(sorted(differing))}: changed while it was published; publish again"
        )


def _keep_results(
    root: Path, artifacts: Path, message: str, dry_run: bool, say: Callable[[str], None]
) -> None:
    name = f"run-{result_tags(artifacts)['results_digest'][:10]}"
    if dry_run:
        say(f"would keep the DVC experiment {name}, with this message:\n\n{message}")
        return
    versioning.save_experiment(root, name, message)
    say(
        f"DVC: kept as the experiment {name}; git's branch, {LOCK} and the remote are as before. "
        f"`dvc exp show` compares it, `dvc exp push origin {name}` shares it"
    )


@contextmanager
def _no_run_at_work(artifacts: Path) -> Iterator[None]:
    """Hold the locks of all stages, so that no run replaces a folder meanwhile."""
    with ExitStack() as stack:
        for name in SECTIONS:
            path = artifacts / WORK / f"{name}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(path).acquire(timeout=0))
            except Timeout:
                raise InputError(
                    f"{artifacts}: a run is at work on the stage `{name}`; publish when it is done"
                ) from None
        yield


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _tell_raw_data(root: Path, params: Params, say: Callable[[str], None]) -> None:
    for place in (params.prepare.path, params.prepare.pool_path):
        if not versioning.is_versioned(root, str(place)):
            say(
                f"note: files in {place} are neither in git nor in DVC; a clone gets the prepared "
                "rows, and cannot prepare anew. `dvc add` a folder in it to change that"
            )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Examples: replenish publish --dry-run · replenish publish --remote team --with-params"
)
def command(
    remote: Annotated[
        str | None, typer.Option("--remote", help="DVC remote; the default one if not given.")
    ] = None,
    push: Annotated[
        bool, typer.Option("--push/--no-push", help="Push to the remote before the commit.")
    ] = True,
    with_care: Annotated[
        bool, typer.Option("--with-care", help="Publish a verdict `use_with_care`, too.")
    ] = False,
    with_params: Annotated[
        bool, typer.Option("--with-params", help="Commit a changed params.yaml as well.")
    ] = False,
    results_only: Annotated[
        bool,
        typer.Option(
            "--results-only",
            help="Keep the run as a DVC experiment, whatever its verdict; publish no dataset.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Commit what a run made to DVC and git, if the verdict allows; nothing runs again."""
    wish = Wish(remote, push, with_care, with_params, results_only, dry_run)
    publish(Path.cwd(), wish, typer.echo)
