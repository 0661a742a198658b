"""The commands `export` and `keygen`, as typer takes them; what they need is imported in them."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.export.choices import Layout

EXPORT_EXAMPLE = (
    "Examples: replenish export --format folder --out my-dataset · replenish export "
    "artifacts/digits/assemble/dataset --format webdataset --out shards --key replenish-private.pem"
)
KEYGEN_EXAMPLE = "Example: replenish keygen keys"

_DEFAULT_STORE = Path("artifacts/assemble/dataset")


def export_command(
    store: Annotated[
        Path, typer.Argument(help="Sample store, such as the stage assemble writes.")
    ] = _DEFAULT_STORE,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write, absent or empty.", metavar="DIR")
    ] = Path("export"),
    layout: Annotated[Layout, typer.Option("--format", help="How to lay it out.")] = "store",
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Private key to sign with, from keygen.", metavar="FILE"),
    ] = None,
    images_per_shard: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Images a tar or manifest; Parquet keeps the store's cut."
        ),
    ] = 1_000,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Give a dataset away: in the layout of a library, with marks, manifests and a signature."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.export.exporting import export, lineage_files

    # The store of a run stands in its artifacts; who takes the export can then check its lineage.
    folder = store.absolute()
    of_a_run = folder.parts[-2:] == ("assemble", "dataset")
    lineage = lineage_files(folder.parents[1]) if of_a_run else {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("export", total=None)
        summary = export(
            store,
            out,
            layout,
            key,
            force=force,
            images_per_shard=images_per_shard,
            lineage=lineage,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    typer.echo(
        f"{summary.rows:,} rows, {summary.synthetic_rows:,} of them synthetic, in "
        f"{summary.shards} shards and {summary.files:,} files: {out}"
    )
    if summary.fingerprint is None:
        typer.echo("Not signed: others can see damage, but not who wrote it (see keygen).")
    else:
        typer.echo(f"Signed; fingerprint of the key: {summary.fingerprint}")


def keygen_command(
    folder: Annotated[Path, typer.Argument(help="Folder to write the two keys into.")] = Path(),
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Make a pair of keys: one to sign exports with, kept secret, and one to verify them."""
    from pipeline.export.signing import keygen

    made = keygen(folder)
    typer.echo(f"Private key, keep it secret and out of version control: {made.private}")
    typer.echo(f"Public key, give it to those who verify: {made.public}")
    typer.echo(f"Fingerprint: {made.fingerprint}")
