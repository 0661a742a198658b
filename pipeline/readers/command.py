"""The command `replenish check`: says what a path holds, and writes the params to start with."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.params import Columns
    from pipeline.readers.checking import Understood

CHECK_EXAMPLE = (
    "Examples: replenish check data/raw · replenish check labels.csv --column label=class "
    "--write mine.yaml"
)

_SHOWN_CLASSES = 40


def check_command(
    path: Annotated[str, typer.Argument(help="Folder or file of labelled images, or hub:ID.")],
    write: Annotated[
        Path | None,
        typer.Option("--write", help="Write a params file to start with.", metavar="FILE"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="Name of a table's column; may be repeated.", metavar="FIELD=NAME"
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Say what format a path has, what is in it and what is wrong with it; nothing is changed."""
    from rich.console import Console

    from pipeline.readers.checking import starting_params, understand, write_starting_params
    from pipeline.readers.limits import ReadLimits

    columns = _columns(column or [])
    found = understand(path, ReadLimits(), columns)
    # Names of classes and files are text to rich, never its markup.
    console = Console(markup=False, highlight=False, emoji=False)
    _show(found, console)
    if write is None:
        console.print("Next: the same with --write FILE, for a params file to start with")
        return
    write_starting_params(write, starting_params(found, columns))
    console.print(f"Written: {write}", soft_wrap=True)
    console.print(f"Next: replenish prepare --params {write}", soft_wrap=True)


def _columns(given: list[str]) -> "Columns":
    from pipeline.params import Columns

    names: dict[str, str] = {}
    for one in given:
        field, equals, name = one.partition("=")
        if field not in Columns.model_fields or not equals or not name:
            raise InputError(
                f"--column {one}: write FIELD=NAME, with a field of "
                f"{', '.join(Columns.model_fields)}"
            )
        names[field] = name
    return Columns(**names)


def _show(found: "Understood", console: "Console") -> None:
    from pipeline.readers.checking import examples_of
    from pipeline.readers.naming import printable

    source, look = found.source, found.look
    say = partial(console.print, soft_wrap=True)
    say(f"Format     {found.recognised.format} ({found.recognised.why})")
    say(f"Images     {len(source)} in {len(source.classes)} classes")
    say(f"Size       {_range(look.widths)} x {_range(look.heights)} px")
    say(f"Modes      {', '.join(f'{mode} {n}' for mode, n in look.modes.items())}")
    say(f"Bytes      about {look.bytes:,}")
    extras = [
        name
        for name, has in (
            ("groups", source.groups),
            ("times", source.times),
            ("masks", source.masks),
            ("texts", source.texts),
        )
        if has
    ]
    if extras:
        say(f"Also       {', '.join(extras)}")
    for what, count in source.conversions.items():
        say(f"Converted  {count}: {what}")
    if look.images < len(source):
        say(f"Looked at  {look.images} headers; prepare decodes every image")
    console.print(_table(found))
    for concern in found.concerns:
        say(f"Mind: {concern}")
    for title, items in (("Set aside", source.quarantine), ("Cannot be read", look.examples)):
        for reason, count, examples in examples_of(items):
            count = look.rejected.get(reason, count) if items is look.examples else count
            say(f"{title}: {count} {reason}")
            for item in examples:
                say(f"  {printable(item.file)}: {printable(item.detail)}")


def _table(found: "Understood") -> object:
    from rich.table import Table
    from rich.text import Text

    from pipeline.readers.checking import SPLITS
    from pipeline.readers.naming import printable

    shown = [split for split in SPLITS if any(row[split] for row in found.counts.values())]
    table = Table("class", box=None, pad_edge=False)
    for split in shown:
        table.add_column(split, justify="right")
    table.add_column("all", justify="right")
    for name, row in list(found.counts.items())[:_SHOWN_CLASSES]:
        cells = [str(row[split]) for split in shown]
        table.add_row(Text(printable(name)), *cells, str(sum(row.values())))
    if len(found.counts) > _SHOWN_CLASSES:
        table.add_row(Text(f"... and {len(found.counts) - _SHOWN_CLASSES} more classes"))
    return table


def _range(ends: tuple[int, int] | None) -> str:
    if ends is None:
        return "?"
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
