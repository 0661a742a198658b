"""git and DVC, asked and told by their command lines.

DVC's Python interface holds locks and settings for as long as a process lives and changes between
versions; its command line lets go of everything when it ends, however it ends.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, StageError
from pipeline.tracking.console import printable
from pipeline.tracking.secrets import without_secrets

LOCK = "dvc.lock"
_TOLD_LINES = 6  # of what a failed command says
_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")


@dataclass(frozen=True)
class Ran:
    """How a command ended.

    Attributes:
        status: exit status.
        out: what it printed.
        told: what it said on standard error, or else printed; no passwords, at most six lines.
    """

    status: int
    out: str
    told: str


def git(root: Path, *arguments: str, text: str | None = None) -> Ran:
    """Run git in `root`, with `text` on its standard input.

    Raises:
        StageError: there is no git.
    """
    # A repository's own settings must not start a watcher here, nor git ask for a password.
    return _run(root, ["git", "-c", "core.fsmonitor=false", *arguments], text)


def dvc(root: Path, *arguments: str) -> Ran:
    """Run DVC in `root`.

    Raises:
        InputError: another DVC command is at work in `root`.
    """
    ran = _run(root, [sys.executable, "-m", "dvc", *arguments])
    if ran.status and any(words in ran.told for words in _BUSY):
        raise InputError(
            f"{root}: another DVC command is at work here and holds its lock; wait for it and "
            "publish again"
        )
    return ran


def need_repositories(root: Path) -> None:
    """Make sure that `root` is a DVC project in a git repository that can take a commit.

    Raises:
        InputError: names what is missing and the command that makes it.
    """
    if not (root / "dvc.yaml").is_file():
        raise InputError(f"{root}: no dvc.yaml; publish in the project folder")
    found = git(root, "rev-parse", "--is-inside-work-tree")
    if found.out != "true":
        raise InputError(f"{root}: no git repository ({found.told}); `git init` and a first commit")
    if not (root / ".dvc").is_dir():
        raise InputError(f"{root}: no DVC project; `dvc init`, then commit .dvc")
    if git(root, "rev-parse", "--verify", "HEAD").status:
        raise InputError(f"{root}: the git repository has no commit; commit the project first")
    for which in ("AUTHOR", "COMMITTER"):
        if git(root, "var", f"GIT_{which}_IDENT").status:
            raise InputError(
                "git does not know who you are; `git config user.name` and `git config user.email`"
            )


def changed_files(root: Path) -> list[str]:
    """Return the files below `root` that git tracks and that differ from the last commit."""
    return git(root, "diff", "--name-only", "-z", "--relative", "HEAD").out.split("\0")[:-1]


def untracked(root: Path, names: Sequence[str]) -> list[str]:
    """Return those of the files that git does not track."""
    known = set(git(root, "ls-files", "-z").out.split("\0"))
    return sorted(set(names) - known)


def is_versioned(root: Path, path: str) -> bool:
    """Say whether a clone would have all of a folder of raw data, from git or from DVC."""
    if not (root / path).exists():
        return True
    others = git(root, "ls-files", "-z", "--others", "--", path)
    if others.status or not others.out:  # a status: outside the repository
        return not others.status
    listed = dvc(root, "ls", "--dvc-only", "--recursive", ".", path)
    files = set(listed.out.splitlines()) if listed.status == 0 else set()
    lost = (Path(name).relative_to(path).as_posix() for name in others.out.split("\0")[:-1])
    return all(name in files for name in lost)


def find_remote(root: Path, wanted: str | None) -> str:
    """Return the name of the remote to push to: the wanted one, else the default.

    Raises:
        InputError: there is no such remote, or no default.
    """
    lines = dvc(root, "config", "--list").out.splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    names = [key[7:-4] for key in settings if key.startswith("remote.") and key.endswith(".url")]
    name = wanted or settings.get("core.remote", "")
    if not name:
        raise InputError(
            "no DVC remote to push to; `dvc remote add --default NAME URL` (a folder, s3://...), "
            "--remote NAME for one that is not the default, or --no-push"
        )
    if name not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"no DVC remote {name!r} (there are: {known}); see `dvc remote list`")
    return name


def changed_data(root: Path) -> list[str]:
    """Return the .dvc files, of data that was added by hand, that the data no longer matches."""
    files = [one for one in git(root, "ls-files", "-z", "--", "*.dvc").out.split("\0") if one]
    return sorted(set(dvc_status(root, *files)) if files else ())


def dvc_status(root: Path, *targets: str) -> dict[str, object]:
    """Return what DVC finds changed, by stage or .dvc file; empty when all is as recorded.

    Without targets, all of them are looked at.

    Raises:
        StageError: DVC cannot say.
    """
    ran = dvc(root, "status", "--json", *targets)
    try:
        found = json.loads(ran.out)
    except ValueError:
        found = None
    if ran.status or not isinstance(found, dict):
        raise StageError(f"`dvc status` failed: {ran.told}")
    return found


def push(root: Path, remote: str) -> str:
    """Push what dvc.lock and the .dvc files name; return what DVC says of it.

    Raises:
        StageError: not everything arrived; a second push sends what is missing.
    """
    ran = dvc(root, "push", "--remote", remote)
    if ran.status:
        raise StageError(
            f"`dvc push` to the remote {remote!r} failed, and git has no new commit: {ran.told}\n"
            "check its address (`dvc remote list`), your rights to write there and its "
            "credentials, then publish again: what has arrived is not sent twice"
        )
    return ran.out.splitlines()[-1] if ran.out else "nothing to push"


def commit(root: Path, files: Sequence[str], message: str) -> str | None:
    """Commit these files alone to git; return the commit, or None where nothing differs.

    Raises:
        StageError: git, or a hook of the repository, refused; the index is left as it was.
    """
    added = git(root, "add", "--", *files)
    if added.status == 0 and git(root, "diff", "--cached", "--quiet", "--", *files).status == 0:
        return None
    how = ("--quiet", "--cleanup=whitespace", "--file=-")
    done = added if added.status else git(root, "commit", *how, "--", *files, text=message)
    if done.status:
        git(root, "reset", "--quiet", "--", *files)
        raise StageError(
            f"git did not commit {', '.join(files)}: {done.told}\n"
            "mend that and publish again: what was pushed is not sent twice"
        )
    return git(root, "rev-parse", "HEAD").out


def save_experiment(root: Path, name: str, message: str) -> None:
    """Keep the workspace as a DVC experiment; branch and dvc.lock stay as they are.

    Raises:
        StageError: DVC could not.
    """
    lock = root / LOCK
    before = lock.read_bytes() if lock.is_file() else None
    extra = () if git(root, "ls-files", "--", LOCK).out else ("--include-untracked", LOCK)
    try:
        ran = dvc(root, "exp", "save", "--force", "--name", name, "--message", message, *extra)
    finally:
        # DVC leaves the experiment's lock in the workspace.
        if before is None:
            lock.unlink(missing_ok=True)
        else:
            lock.write_bytes(before)
    if ran.status:
        raise StageError(f"`dvc exp save` failed: {ran.told}")


def _run(root: Path, command: list[str], text: str | None = None) -> Ran:
    quiet = {"GIT_TERMINAL_PROMPT": "0", "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            cwd=root,
            env={**os.environ, **quiet, "LC_ALL": "C"},
            input=text or "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise StageError(f"{command[0]} is not installed; apt-get install {command[0]}") from None
    said = done.stderr.strip() or done.stdout.strip()
    lines = [printable(line) for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "error", "fatal"))]
    told = "\n".join((errors or lines)[:_TOLD_LINES])
    return Ran(done.returncode, done.stdout.strip(), without_secrets(told))
