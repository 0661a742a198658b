"""`python -m flows.ui` (`make ui`): Prefect and MLflow with their pages, and a worker, right here.

All are child processes; Ctrl-C stops them in order, and when one dies the others are stopped too.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from flows.exits import run_app
from flows.groups import Child, Program, need_alive, start, stopped_at_the_end, wait_until_up
from flows.pages import bootstrap, check_ports, mlflow_page, prefect_page, worker
from flows.team_database import Database, make_databases, read_database
from pipeline.errors import InputError
from pipeline.params import Servers, load_params


def serve(
    pages: tuple[Program, Program], database: Database | None, works: bool, logs: Path
) -> NoReturn:
    """Start all, say what is up and where, and stay until one ends or Ctrl-C.

    Args:
        pages: Prefect's server and MLflow's.
        database: the team's, in which both keep their records; None = SQLite files.
        works: also fill the Prefect server, and start a worker?
        logs: folder of the programs' output.

    Raises:
        InputError: see `check_ports`.
        StageError: a program did not start, or ended by itself; the others have ended by then.
        KeyboardInterrupt: Ctrl-C or a polite kill; all have ended by then.
    """
    check_ports(pages)
    with stopped_at_the_end(_say) as children:
        _say("starting Prefect and MLflow ...")
        servers = [start(page, children, logs) for page in pages]
        wait_until_up(servers, children)
        for server in servers:
            _tell(server)
        if works:
            prefect, mlflow = pages
            filled = start(bootstrap(prefect), children, logs)
            wait_until_up([filled], children)
            typer.echo(f"{'deployed':<9}prefect.yaml  log {filled.log}")
            begun = start(worker(prefect, mlflow, database), children, logs)
            wait_until_up([begun], children)
            _tell(begun)
        typer.echo(
            "To send runs here from another terminal: export "
            f"PREFECT_API_URL={pages[0].where}/api"
            + ("" if database is None else f" MLFLOW_TRACKING_URI={pages[1].where}")
            + "\nCtrl-C stops all."
        )
        sys.stdout.flush()
        while True:
            need_alive(children)
            time.sleep(0.3)


def _tell(child: Child) -> None:
    text = f"{child.program.name:<9}{child.program.where}  pid {child.process.pid}  log {child.log}"
    typer.echo(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    typer.echo(text, err=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Instead of the params' key in `servers`.")
]


@app.command(epilog="Example: python -m flows.ui --prefect-port 4201 --mlflow-port 5001")
def command(
    prefect_port: Port = None,
    mlflow_port: Port = None,
    params: Annotated[
        Path | None, typer.Option(help="Params file with a section `servers`; else params.yaml.")
    ] = None,
    work: Annotated[
        bool,
        typer.Option(
            "--worker/--no-worker", help="Also deploy prefect.yaml and start a worker, or not."
        ),
    ] = True,
) -> None:
    """Serve the Prefect and MLflow pages on 127.0.0.1, with a worker, until Ctrl-C."""
    root = Path.cwd()
    here = root / "params.yaml"
    wanted = load_params(params or here).servers if params or here.is_file() else Servers()
    if work and not (root / "prefect.yaml").is_file():
        raise InputError(
            f"{root}: has no prefect.yaml to deploy; run this in the project folder, or give "
            "--no-worker for the pages alone"
        )
    database = None if wanted.database is None else read_database(wanted.database)
    pages = (
        prefect_page(prefect_port or wanted.prefect_port, database),
        mlflow_page(root, mlflow_port or wanted.mlflow_port, database),
    )
    check_ports(pages)
    if database is not None:
        made = make_databases(database)
        typer.echo(f"{'records':<9}PostgreSQL {database.place}" + (": new" if made else ""))
    try:
        serve(pages, database, work, Path("runs"))
    except KeyboardInterrupt:  # here, because typer would make "Aborted." of it
        _say("stopped")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 stopped, 1 a program failed, 2 bad params or ports."""
    run_app(app, arguments)


if __name__ == "__main__":
    main()
