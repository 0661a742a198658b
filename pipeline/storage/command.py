"""The commands `replenish fetch` and `replenish send`: a run between a folder and a URL."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError, StageError

FETCH_EXAMPLE = "Example: replenish fetch s3://bucket/run1 artifacts/run1"
SEND_EXAMPLE = "Example: replenish send artifacts/run1 s3://bucket/run1"


def fetch_command(
    url: Annotated[str, typer.Argument(help="URL of a run's artifacts.")],
    folder: Annotated[Path, typer.Argument(help="Local folder for them.")],
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Fetch the finished stages of a run at a URL into a folder, checked by their digests."""
    from pipeline.storage.artifacts import fetch_all
    from pipeline.storage.locations import open_location

    fetched, problems = fetch_all(open_location(url), folder)
    for line in problems:
        typer.echo(f"PROBLEM  {line}")
    if problems:
        raise StageError(f"{url}: {len(problems)} stages are damaged, listed above")
    typer.echo(f"Fetched into {folder}: {', '.join(fetched)}")


def send_command(
    folder: Annotated[Path, typer.Argument(help="Artifacts folder of a run.")],
    url: Annotated[str, typer.Argument(help="URL for them.")],
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Send the finished stages of a run to a URL; what is there already is not sent again."""
    from pipeline.folders import read_manifest
    from pipeline.params import SECTIONS
    from pipeline.storage.locations import open_location
    from pipeline.storage.locks import hold
    from pipeline.storage.mirror import send_stage

    finished = [name for name in SECTIONS if read_manifest(folder / name) is not None]
    if not finished:
        raise InputError(f"{folder}: holds no finished stage; give the artifacts folder of a run")
    location = open_location(url)
    with hold(location) as lock:
        for name in finished:
            send_stage(folder / name, location, name, lock.check)
    typer.echo(f"Sent to {location.url}: {', '.join(finished)}")
