"""The command line: `replenish`, the same as `python -m pipeline`.

Only what a command needs is imported, when it runs. Exit status: 0 done, 1 the work failed,
2 the input cannot be used.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from pipeline import __version__
from pipeline.errors import InputError, StageError
from pipeline.export.command import (
    EXPORT_EXAMPLE,
    KEYGEN_EXAMPLE,
    export_command,
    keygen_command,
)
from pipeline.params import HEAD_MARGIN_POINTS, SECTIONS, Params, StageName, load_params
from pipeline.processes import end_with_launcher
from pipeline.readers.command import CHECK_EXAMPLE, check_command
from pipeline.storage.command import FETCH_EXAMPLE, SEND_EXAMPLE, fetch_command, send_command

if TYPE_CHECKING:
    from pipeline.tracking.tracker import Tracker

# Commands of the orchestrators, which domain code does not know: each in a module of `flows`, that
# is imported when the command is asked for. Name -> module, what it does, an example.
ELSEWHERE = {
    "announce": (
        "flows.announce",
        "Tell Prefect that a new version of the data is there.",
        "replenish announce data/raw",
    ),
    "bootstrap": (
        "flows.bootstrap",
        "Set a Prefect server up: pools, queues, deployments, automations.",
        "replenish bootstrap",
    ),
    "publish": (
        "flows.publish",
        "Commit what a run made to DVC and git, if the gate allows.",
        "replenish publish --dry-run",
    ),
}

app = typer.Typer(
    name="replenish",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Top up the thin classes of a small labelled image set with synthetic images, and say "
        "honestly whether that helped the classifier."
    ),
    epilog="Example: replenish run --set train.steps=500",
)


def _local(path: Path) -> Path:
    from pipeline.storage.locations import refuse_url

    refuse_url(str(path), "`replenish fetch URL DIR` brings a run into one")
    return path


ParamsFile = Annotated[
    Path, typer.Option("--params", help="Params file.", show_default=True, metavar="FILE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one param; may be repeated."),
]
Artifacts = Annotated[
    Path,
    typer.Option(
        "--artifacts",
        help="Folder of the results, one folder a stage.",
        metavar="DIR",
        callback=_local,
    ),
]
Where = Annotated[
    str,
    typer.Option(
        "--artifacts",
        help="Folder of the results, one folder a stage; or its URL: s3://, gs://, file://.",
        metavar="DIR|URL",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of the local mirrors of URLs (default: in the user's cache).",
        metavar="DIR",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if it is up to date.")]
Mlflow = Annotated[
    bool, typer.Option("--mlflow/--no-mlflow", help="Record the run in MLflow (mlflow.db).")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the params, say what would be done, and stop.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]

DEFAULT_PARAMS = Path("params.yaml")
DEFAULT_ARTIFACTS = Path("artifacts")
DEFAULT_WHERE = str(DEFAULT_ARTIFACTS)


@app.command(
    epilog="Examples: replenish run · replenish run --params examples/fashion_mnist.yaml "
    "--artifacts artifacts/fashion_mnist · replenish run --set train.steps=500 --dry-run"
)
def run(
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
    artifacts: Where = DEFAULT_WHERE,
    cache: Cache = None,
    force: Force = False,
    mlflow: Mlflow = True,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Run all stages that are not up to date; an interrupted run goes on where it stopped."""
    from pipeline.stages.running import run_stage_at, stale_stages_at
    from pipeline.storage.artifacts import open_artifacts
    from pipeline.tracking.facts import log_results, outcome_lines

    settings = load_params(params, tuple(overrides or ()))
    if dry_run:
        waiting = set(SECTIONS) if force else set(stale_stages_at(settings, artifacts))
        for name in SECTIONS:
            typer.echo(f"{name:<12}{'would run' if name in waiting else 'up to date'}")
        return
    with (
        open_artifacts(artifacts, cache) as place,
        _tracker(settings, place.folder, "run", "run", mlflow, force) as (tracker, seconds),
    ):
        for name in SECTIONS:
            run_stage_at(name, settings, place, tracker, force=force)
        log_results(place.folder, tracker)
    for line in outcome_lines(place.folder, seconds):
        typer.echo(line)
    if place.location is not None:
        typer.echo(f"Stored: {place.location.url}")


def _add_stage_command(name: StageName, help_text: str, example: str) -> None:
    @app.command(name, help=help_text, epilog=f"Example: {example}")
    def command(
        params: ParamsFile = DEFAULT_PARAMS,
        overrides: Overrides = None,
        artifacts: Where = DEFAULT_WHERE,
        cache: Cache = None,
        force: Force = False,
        mlflow: Mlflow = True,
        debug: Debug = False,
    ) -> None:
        _run_one(name, load_params(params, tuple(overrides or ())), artifacts, cache, force, mlflow)


def _run_one(
    name: StageName, settings: Params, where: str, cache: Path | None, force: bool, mlflow: bool
) -> None:
    from pipeline.stages.running import run_stage_at
    from pipeline.storage.artifacts import open_artifacts
    from pipeline.tracking.facts import log_results

    with (
        open_artifacts(where, cache) as place,
        _tracker(settings, place.folder, name, "stage", mlflow, force) as (tracker, _),
    ):
        run_stage_at(name, settings, place, tracker, force=force)
        if name == SECTIONS[-1]:
            log_results(place.folder, tracker)


_add_stage_command(
    "prepare",
    "Read the images, quarantine what cannot be used, split, and write the sample store.",
    "replenish prepare --set prepare.source=folder --set prepare.path=data/raw",
)
_add_stage_command(
    "pretrain",
    "Find or make the base to fine-tune: unlabelled images, a diffusers model, an earlier run.",
    "replenish pretrain --set pretrain.base=pool --set train.base_channels=32",
)
_add_stage_command(
    "train",
    "Train the class-conditional diffusion model on the real training rows; stop before it copies.",
    "replenish train --set train.steps=500",
)
_add_stage_command(
    "synthesize",
    "Generate images of each class; score them; accept or reject with reasons.",
    "replenish synthesize --set synthesize.guidance=2.0",
)


@app.command(
    epilog="Examples: replenish evaluate --set evaluate.seeds=8 · replenish evaluate --controls"
)
def evaluate(
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
    artifacts: Where = DEFAULT_WHERE,
    cache: Cache = None,
    force: Force = False,
    mlflow: Mlflow = True,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Ask the gate about rows of a known worth instead: shuffled labels, noise and "
            "copies, which it must refuse, and held-out real rows, which it must accept.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare classifiers with and without synthetic images, and write the verdict."""
    settings = load_params(params, tuple(overrides or ()))
    if controls:
        _run_controls(settings, _local(Path(artifacts)))
    else:
        _run_one("evaluate", settings, artifacts, cache, force, mlflow)


def _run_controls(settings: Params, artifacts: Path) -> None:
    from pipeline.stages.controls import run_controls
    from pipeline.stages.running import finished_folder

    stores = (
        finished_folder("prepare", artifacts) / "dataset",
        finished_folder("synthesize", artifacts) / "accepted",
    )
    out = artifacts / "controls"
    with _tracker(settings, artifacts, "evaluate", "stage", mlflow=False) as (tracker, _):
        found = run_controls(settings.evaluate, *stores, out, tracker)
    for one in found:
        typer.echo(
            f"{'ok' if one.as_expected else 'WRONG':<6}{one.name:<16} {one.kind:<9} "
            f"{one.decision:<13} {one.gain_points:+.2f} points "
            f"({one.low_points:+.2f} to {one.high_points:+.2f})"
        )
    typer.echo(f"Written: {out / 'controls.json'}")
    if not all(one.as_expected for one in found):
        raise StageError(
            "the gate did not say what it should of every control; at 95 % it errs in one negative "
            "control of 40, and a positive one needs enough test images: see docs/statistics.md"
        )


@app.command(
    epilog="Example: replenish run --set seed=1 --artifacts runs/1, the same with seed=2 and 3, "
    "then: replenish pool runs/1 runs/2 runs/3 --out pooled.json"
)
def pool(
    runs: Annotated[list[Path], typer.Argument(help="Artifacts folders of runs with other seeds.")],
    out: Annotated[Path, typer.Option("--out", help="File of the verdict.", metavar="FILE")] = Path(
        "pooled.json"
    ),
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, max=1_000_000)] = 2000,
    margin: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Points of recall that a class may lose.")
    ] = HEAD_MARGIN_POINTS,
    debug: Debug = False,
) -> None:
    """Give one verdict over several runs, each with its own split, generator and images."""
    from pipeline.downstream.pooled import pooled_verdict, read_run
    from pipeline.folders import write_json
    from pipeline.stages.running import finished_folder
    from pipeline.tracking.facts import read_verdict

    for folder in runs:
        finished_folder("evaluate", folder)
        finished_folder("prepare", folder)
        finished_folder("synthesize", folder)
    read = [read_run(folder, read_verdict(folder)) for folder in runs]
    verdict = pooled_verdict(read, resamples, confidence, margin, seed=0)
    write_json(out, verdict)
    for one in verdict["runs"]:
        typer.echo(f"{one['name']:<40} {one['gain_points']:+.2f} points")
    typer.echo(f"Verdict over {len(runs)} runs: {verdict['sentence']}")
    for reason in verdict["reasons"]:
        typer.echo(f"- {reason}")
    typer.echo(f"Written: {out}")


_add_stage_command(
    "assemble",
    "Write the dataset to take away: real rows, and synthetic ones if the verdict says use.",
    "replenish assemble --set assemble.name=my-dataset",
)
_add_stage_command(
    "report", "Write the self-contained HTML report.", 'replenish report --set report.title="Mine"'
)


app.command("check", epilog=CHECK_EXAMPLE)(check_command)
app.command("export", epilog=EXPORT_EXAMPLE)(export_command)
app.command("keygen", epilog=KEYGEN_EXAMPLE)(keygen_command)
app.command("fetch", epilog=FETCH_EXAMPLE)(fetch_command)
app.command("send", epilog=SEND_EXAMPLE)(send_command)


@app.command(
    epilog="Examples: replenish verify artifacts · replenish verify artifacts/assemble/dataset · "
    "replenish verify s3://bucket/run1 · "
    "replenish verify my-export --public-key replenish-public.pem"
)
def verify(
    folder: Annotated[
        str, typer.Argument(help="Artifacts, stage, sample store or export; or URL of artifacts.")
    ],
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", help="Key that signed an export.", metavar="FILE"),
    ] = None,
    artifacts: Annotated[
        Path | None,
        typer.Option("--artifacts", help="Run that an export comes from.", metavar="DIR"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Check signatures, digests, lineage, and that no synthetic row stands outside train."""
    from pipeline.verification import verify_at

    findings = verify_at(folder, public_key, artifacts)
    for line in findings.checked:
        typer.echo(f"checked  {line}")
    for line in findings.problems:
        typer.echo(f"PROBLEM  {line}")
    if findings.problems:
        raise StageError(f"{folder}: {len(findings.problems)} problems, listed above")
    typer.echo(f"{folder}: all is well")


@app.command(epilog="Examples: replenish track · replenish track --artifacts artifacts/digits")
def track(artifacts: Artifacts = DEFAULT_ARTIFACTS, debug: Debug = False) -> None:
    """Send finished results to MLflow later, after a run that it missed."""
    from pipeline.tracking.sending import send_results

    sent = send_results(artifacts)
    what = "made" if sent.made else "completed"
    typer.echo(f"MLflow run {sent.run_id} {what}: it holds all of {artifacts}")


@app.command(
    epilog="Examples: replenish status · replenish status --watch · "
    "replenish status --digest 3f9a2c71"
)
def status(
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = None,
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not compare finished stages with the params.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on saying it, until Ctrl-C.")] = False,
    every_seconds: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Seconds between two looks of --watch.")
    ] = 5.0,
    digest: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="Say which run made the folder of this digest: a manifest's, dvc.lock's, or the "
            "id of a run here, in MLflow or in Prefect.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say where a run stands and when it will end; only reads, and stops no run."""
    from pipeline.status_command import show_makers, show_status

    if digest is not None:
        show_makers(digest, artifacts, typer.echo, as_json)
        return
    if params == DEFAULT_PARAMS and not params.exists() and not overrides:
        quick = True
    show_status(
        artifacts,
        None if quick else load_params(params, tuple(overrides or ())),
        typer.echo,
        as_json=as_json,
        every_seconds=every_seconds if watch else None,
    )


@app.command(epilog="Example: replenish doctor --mlflow-port 5001")
def doctor(
    artifacts: Artifacts = DEFAULT_ARTIFACTS,
    prefect_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to look at for the Prefect page.")
    ] = 4200,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to look at for the MLflow page.")
    ] = 5000,
    debug: Debug = False,
) -> None:
    """Examine device, precision, versions, memory, disk and ports."""
    from pipeline.doctor import examine

    ports = {"the Prefect page": prefect_port, "the MLflow page": mlflow_port}
    findings = examine(artifacts.absolute(), ports)
    for finding in findings:
        typer.echo(f"{finding.state:<5} {finding.topic:<16} {finding.text}")
    if any(finding.state == "bad" for finding in findings):
        raise StageError("this machine cannot run Replenish as it is; mend the lines marked bad")


def _add_elsewhere(name: str, module: str, text: str, example: str) -> None:
    @app.command(
        name,
        help=text,
        epilog=f"Example: {example}",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def command(context: typer.Context) -> None:
        import_module(module).app(context.args, prog_name=f"replenish {name}")


for _name, _told in ELSEWHERE.items():
    _add_elsewhere(_name, *_told)


@app.command(epilog="Example: replenish dag > dvc.yaml")
def dag() -> None:
    """Print dvc.yaml, made from the list of stages and what each one imports."""
    from pipeline.dag import dvc_file

    typer.echo(dvc_file(), nl=False)


@app.command(epilog="Example: replenish version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@contextmanager
def _tracker(
    params: Params,
    artifacts: Path,
    name: str,
    driver: Literal["run", "stage"],
    mlflow: bool,
    force: bool = False,
) -> "Iterator[tuple[Tracker, dict[str, float]]]":
    from pipeline.stages.running import stale_stages
    from pipeline.team import join_team
    from pipeline.tracking.console import ConsoleTracker
    from pipeline.tracking.session import record_run
    from pipeline.tracking.tracker import NullTracker

    if not join_team().leads:
        yield NullTracker(), {}  # the leader of the team speaks for all
        return
    try:
        with (
            ConsoleTracker() as console,
            record_run(
                artifacts,
                params,
                name,
                driver,
                speakers=(console,),
                warn=console.note,
                mlflow=mlflow,
                nothing_to_do=lambda: not (force or stale_stages(params, artifacts)),
            ) as session,
        ):
            yield session.tracker, session.seconds
    except KeyboardInterrupt:  # here, because typer would make "Aborted." of it
        _fail("interrupted; run the same command again to go on from here", 130)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # Read by OpenMP when torch is loaded, which the commands do. Threads that wait without spinning
    # do not starve when cores are shared: five times faster then, and no slower alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    end_with_launcher()
    # Whoever ends it kindly (a container's stop, a cluster, `kill`) is answered like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except (InputError, StageError) as error:
        _trace()
        _fail(error, 2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on from here", 130)
    except Exception as error:  # the last line of defence: a message, not a traceback
        _trace()
        _fail(f"{type(error).__name__}: {error} (run again with --debug for a traceback)", 1)
    raise SystemExit(0)


def _trace() -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()


def _fail(error: object, status: int) -> NoReturn:
    from pipeline.readers.naming import printable

    for line in str(error).splitlines():
        typer.echo(printable(f"error: {line}"), err=True)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
