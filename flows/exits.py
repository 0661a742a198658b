"""How a command line of `flows` ends: with a message and a status, never with a traceback."""

from typing import NoReturn

import typer

from pipeline.errors import InputError, StageError


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0 done, 1 something failed, 2 the input cannot be used."""
    status = 0
    try:
        app(arguments)
    except (InputError, StageError) as error:
        typer.echo(f"error: {error}", err=True)
        status = 2 if isinstance(error, InputError) else 1
    raise SystemExit(status)
