"""`replenish announce`: tell Prefect that a new version of the data is there.

The event `replenish.dataset.updated` says what the data is: its digest, classes and counts. The
automation that `replenish bootstrap` makes starts augment/on-demand on it. A version that was
announced already is not announced again.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.events import Event, Resource

from flows.server import server_client
from pipeline.folders import write_json
from pipeline.hashing import digest_json
from pipeline.params import PrepareParams, load_params
from pipeline.readers.naming import printable
from pipeline.readers.read import digest_source, read_format, read_limits
from pipeline.readers.recognise import recognise

UPDATED = "replenish.dataset.updated"
MEMORY = Path("runs") / "announced.json"
_SHOWN_CLASSES = 200  # an event has a limit of size
_NOTE_CHARACTERS = 1000


@dataclass(frozen=True)
class Version:
    """What the data at a path is now.

    Attributes:
        path: as a run in the project folder finds it.
        source: its format, a value of `prepare.source`.
        digest: of all of it.
        counts: class -> images, in the order of the classes.
        aside: what could not be listed as an image.
    """

    path: str
    source: str
    digest: str
    counts: dict[str, int]
    aside: int


def version_of(path: str, prepare: PrepareParams) -> Version:
    """Read the data at a path, as `prepare` would, and return what it is.

    Args:
        path: folder or file, or hub:owner/name.
        prepare: columns and limits of the params.

    Raises:
        InputError: nothing is there, or nothing that can be read.
    """
    found = recognise(path, prepare.columns)
    source = read_format(found, read_limits(prepare), prepare.columns)
    labels = source.labels[source.labels >= 0]
    sizes = np.bincount(labels, minlength=len(source.classes)).tolist()
    counts = dict(zip(source.classes, sizes, strict=True))
    return Version(
        _from_here(found.path), found.format, digest_source(source), counts, len(source.quarantine)
    )


def announce(
    client: SyncPrefectClient,
    version: Version,
    note: str = "",
    memory: Path = MEMORY,
    again: bool = False,
) -> bool:
    """Send the event, unless this version is the one that was announced last.

    The server has taken it when this returns; only then it is remembered, so that an interruption
    can make it come twice (the second run has nothing to do), and never get lost.

    Returns:
        Was it sent?
    """
    told = read_memory(memory)
    if not again and told.get(version.path, {}).get("digest") == version.digest:
        return False
    event = Event(
        event=UPDATED,
        resource=Resource.model_validate(
            {
                "prefect.resource.id": f"replenish.dataset.{digest_json(version.path)[:16]}",
                "prefect.resource.name": printable(version.path),
            }
        ),
        payload={
            "path": version.path,
            "source": version.source,
            "digest": version.digest,
            "images": sum(version.counts.values()),
            "set_aside": version.aside,
            "classes": len(version.counts),
            "counts": dict(list(version.counts.items())[:_SHOWN_CLASSES]),
            "note": note[:_NOTE_CHARACTERS],
        },
    )
    # Prefect's own `emit_event` sends later, and says nothing if it cannot.
    client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
    told[version.path] = {
        "digest": version.digest,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "event": str(event.id),
    }
    write_json(memory, told)
    return True


def read_memory(memory: Path = MEMORY) -> dict[str, Any]:
    """Return path -> what was announced of it last; a missing or damaged file counts as nothing."""
    try:
        told = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in told.items() if isinstance(v, dict)} if isinstance(told, dict) else {}


def prepare_params(params: Path) -> PrepareParams:
    """Return `prepare` of a params file, for columns and limits; the defaults where there is none.

    Raises:
        InputError: a file that is there cannot be used.
    """
    return load_params(params).prepare if params.exists() else PrepareParams()


def _from_here(path: str) -> str:
    """Return a path relative to the project folder if it lies in it, else as it is, absolute."""
    if path.startswith("hub:"):
        return path
    whole = Path(path).resolve()
    here = Path.cwd().resolve()
    return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog='Example: replenish announce data/raw --note "March\'s images"')
def command(
    path: Annotated[str, typer.Argument(help="Folder or file of labelled images, or hub:ID.")],
    note: Annotated[str, typer.Option("--note", help="What is new, for people.")] = "",
    params: Annotated[
        Path, typer.Option("--params", help="Params file: columns and limits.", metavar="FILE")
    ] = Path("params.yaml"),
    again: Annotated[
        bool, typer.Option("--again", help="Announce it even if it was announced already.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Tell Prefect that a new version of the data is there; it starts augment/on-demand."""
    version = version_of(path, prepare_params(params))
    images = sum(version.counts.values())
    typer.echo(
        f"{printable(version.path)}: {version.source}, {images} images in "
        f"{len(version.counts)} classes, digest {version.digest[:16]}"
    )
    with server_client() as client:
        sent = announce(client, version, note, again=again)
        where = client.api_url
    if sent:
        typer.echo(f"Announced to {where}")
    else:
        typer.echo("Announced before, and the same since: nothing was sent (--again does)")
