"""`python -m flows.watch PATH`: watch a folder, and announce its data when a new version is whole.

Data is whole when two looks in a row see the same files: names, sizes and times, which are cheap.
Only then it is read, and announced if its digest is not the one that was announced last.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows.announce import MEMORY, announce, prepare_params, read_memory, version_of
from flows.exits import run_app
from flows.server import server_client
from pipeline.errors import InputError
from pipeline.folders import write_json
from pipeline.hashing import digest_lines
from pipeline.params import PrepareParams
from pipeline.readers.naming import printable

LOOKS = Path("runs") / "watched.json"


def fingerprint(path: Path) -> str:
    """Return a digest of the names, sizes and times of all files at a path; links not followed.

    Raises:
        InputError: nothing is there.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; watch one that exists (a hub id cannot be watched)"
        )
    return digest_lines(_facts(path))


def _facts(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield _fact(path, path.name)
    for here, folders, files in os.walk(path):
        for name in (*folders, *files):
            one = Path(here, name)
            yield _fact(one, one.relative_to(path).as_posix())


def _fact(path: Path, name: str) -> str:
    try:
        found = path.lstat()
    except OSError:  # it went away in between: the next look sees other files
        return f"{name!r} gone"
    # A folder's time changes with its files, whose names are here already.
    times = "" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} {found.st_mtime_ns}"
    return f"{name!r} {times}"


def look(
    path: Path,
    prepare: PrepareParams,
    say: Callable[[str], None],
    looks: Path = LOOKS,
    memory: Path = MEMORY,
) -> str:
    """Look once, and announce what is whole and new.

    What was seen is kept in a file, so that looks can be minutes and processes apart.

    Args:
        path: folder or file.
        prepare: columns and limits of the params.
        say: told what was found, a line.
        looks: file of what was seen last.
        memory: file of what was announced last.

    Returns:
        `changing` (files differ from the last look), `known` (nothing new since the last
        announcement or reading), or `announced`.

    Raises:
        InputError: nothing is there, the data cannot be read, or the server does not answer; the
            next look tries again.
    """
    seen = fingerprint(path)
    kept = read_memory(looks)
    key = str(path.resolve())
    last: dict[str, Any] = kept.get(key, {})
    if last.get("seen") != seen:
        write_json(looks, {**kept, key: {"seen": seen, "read": last.get("read")}})
        say(f"{printable(str(path))}: files have changed; they are read once they stay as they are")
        return "changing"
    if last.get("read") == seen:
        return "known"
    version = version_of(str(path), prepare)
    if fingerprint(path) != seen:
        write_json(looks, {**kept, key: {"seen": "", "read": last.get("read")}})
        return "changing"
    with server_client() as client:
        sent = announce(client, version, "seen by flows.watch", memory)
    write_json(looks, {**kept, key: {"seen": seen, "read": seen}})
    say(
        f"{printable(str(path))}: digest {version.digest[:16]}, "
        + ("announced" if sent else "the one that was announced before")
    )
    return "announced" if sent else "known"


def watch(
    path: Path,
    every_seconds: float,
    once: bool,
    prepare: PrepareParams,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Look again and again; data that cannot be read yet, or a server that is away, is told.

    Args:
        path: folder or file.
        every_seconds: between two looks.
        once: look once and return; what cannot be done is raised then.
        prepare: columns and limits of the params.
        say: told what happens, a line.
        sleep: waits so many seconds.

    Raises:
        InputError: see `look`; with `once` alone, or where there is nothing at the start.
    """
    fingerprint(path)  # a mistyped path is no folder to wait for
    told = ""
    while True:
        try:
            look(path, prepare, say)
            told = ""
        except InputError as error:
            if once:
                raise
            if str(error) != told:  # the same for hours is one line
                told = str(error)
                say(f"not announced, tried again in {every_seconds:g} s: {told}")
        if once:
            return
        sleep(every_seconds)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m flows.watch data/raw --every 60")
def command(
    path: Annotated[Path, typer.Argument(help="Folder or file of labelled images.")],
    every: Annotated[
        float, typer.Option("--every", min=1.0, max=86_400.0, help="Seconds between two looks.")
    ] = 60.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look once; for cron, with two calls to settle.")
    ] = False,
    params: Annotated[
        Path, typer.Option("--params", help="Params file: columns and limits.", metavar="FILE")
    ] = Path("params.yaml"),
) -> None:
    """Watch a folder and announce its data when a new version is whole, until Ctrl-C."""
    try:
        watch(path, every, once, prepare_params(params), typer.echo)
    except KeyboardInterrupt:  # here, because typer would make "Aborted." of it
        typer.echo("stopped", err=True)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 stopped or looked, 1 a failure, 2 the input is unusable."""
    run_app(app, arguments)


if __name__ == "__main__":
    main()
