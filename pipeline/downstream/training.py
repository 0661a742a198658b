"""Train the classifiers of all arms and seeds, in worker processes or in this one.

The result of a (arm, seed) pair is what its classifier predicts for every validation and test row.
It is a function of the data, the settings and the pair alone: each classifier uses one processor
thread, so the number of workers changes nothing. A finished pair is kept in a file of the work
folder, where an interrupted run finds it again. Pairs of one seed are done one after the other, so
that they share their augmented rows (`views`).
"""

import io
import shutil
import zipfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from pipeline.device import pick_device, torch_threads, usable_cores
from pipeline.downstream.arms import Arm
from pipeline.downstream.bench import Bench, read_bench
from pipeline.downstream.fitting import (
    Labels,
    Pair,
    Predictions,
    fit_pair,
    make_views,
    network_of,
    predict_all,
)
from pipeline.downstream.views import Views
from pipeline.errors import StageError
from pipeline.features.networks import DESCRIPTION, WEIGHTS, save_network
from pipeline.folders import write_bytes
from pipeline.params import EvaluateParams
from pipeline.processes import begin_worker

_POLL_SECONDS = 0.5  # between looks at which pairs are finished
KEPT_SEED = 0  # whose classifiers are kept, not their predictions alone


class _Stopped(Exception):
    """The parent asked the workers to stop."""


@dataclass(frozen=True)
class Sources:
    """Where the rows of the comparison lie.

    Attributes:
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows.
        rivals: file of the rows that baselines add, if any.
        runs: folder of the finished pairs.
    """

    dataset: Path
    accepted: Path
    runs: Path
    rivals: Path | None = None

    def bench(self, seed: int) -> Bench:
        """Read the rows."""
        return read_bench(self.dataset, self.accepted, self.rivals, seed)

    def kept_model(self, arm: Arm) -> Path:
        """Return the folder of an arm's kept classifier."""
        return self.runs / arm.key()


class Trainers:
    """Whoever trains: processes that stay for all pairs of a comparison, or this one.

    Used as a context; no process is left when it ends, however it ends.

    Attributes:
        bench: the rows.
    """

    def __init__(self, params: EvaluateParams, sources: Sources) -> None:
        """Read the rows; the processes start when they are first needed.

        Args:
            params: the stage's section; `execution` says where the work runs.
            sources: where the rows lie, and where finished pairs are kept.
        """
        self._params, self._sources = params, sources
        self.bench = sources.bench(params.seed)
        self._device = pick_device(params.execution.device)
        self._workers = params.execution.workers or usable_cores()
        # spawn: torch's threads do not survive a fork. A spawned worker reads the stores itself,
        # so that no array goes through a pipe.
        self._context = get_context("spawn")
        self._stop = self._context.Event()
        self._pool: ProcessPoolExecutor | None = None

    def train(
        self, pairs: Sequence[Pair], on_done: Callable[[int, int], None]
    ) -> dict[Pair, Predictions]:
        """Return the predictions of every pair, in the order of `pairs` whoever is done first.

        Pairs whose file stands in `sources.runs` are read, not trained again; a damaged file is
        replaced. The classifiers of the seed `KEPT_SEED` are kept beside their predictions.

        Args:
            pairs: arm and seed index of each classifier; those of one seed had best stand together.
            on_done: told finished and total pairs, at the start and after each pair.

        Raises:
            StageError: a worker process died.
        """
        runs = self._sources.runs
        done: dict[Pair, Predictions] = {}
        waiting: list[Pair] = []
        for pair in pairs:
            found = read_run(run_path(runs, pair), self.bench)
            if found is None or not _model_is_kept(self._sources, pair):
                waiting.append(pair)
            else:
                done[pair] = found
        on_done(len(done), len(pairs))
        alone = self._device.type == "cuda" or self._workers == 1 or len(waiting) == 1
        finished = self._train_here(waiting) if alone else self._train_in_workers(waiting)
        with closing(finished):  # an error below must not leave it to the garbage collector
            for pair in finished:
                result = read_run(run_path(runs, pair), self.bench)
                if result is None:
                    raise StageError(
                        f"{run_path(runs, pair)}: not readable after it was written; check the "
                        "disk and run the same command again"
                    )
                done[pair] = result
                on_done(len(done), len(pairs))
        return {pair: done[pair] for pair in pairs}

    def close(self) -> None:
        """Let the workers go: nothing new is begun, busy ones give up at their next step."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        """Return the trainers."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Let the workers go, also on Ctrl-C."""
        self.close()

    def _train_here(self, pairs: Sequence[Pair]) -> Generator[Pair, None, None]:
        views: Views | None = None
        for pair in pairs:
            with torch_threads(1):
                views = _views_for(pair, views, self.bench, self._params)
                _do(self.bench, self._params, pair, self._device, None, views, self._sources)
            yield pair

    def _train_in_workers(self, pairs: Sequence[Pair]) -> Generator[Pair, None, None]:
        if self._pool is None and pairs:
            self._pool = ProcessPoolExecutor(
                self._workers,
                self._context,
                initializer=_start_worker,
                initargs=(self._sources, self._params, self._stop),
            )
        pool, runs = self._pool, self._sources.runs
        left = {run_path(runs, pair): pair for pair in pairs}
        for path in left:
            path.unlink(missing_ok=True)  # damaged ones, which must not pass for new ones
        try:
            pending: set[Future[None]] = {
                pool.submit(_work, part)
                for part in _parts(pairs, self._workers)
                if pool is not None
            }
            while left:
                ended = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                pending = ended.not_done
                for path in [path for path in left if path.exists()]:
                    yield left.pop(path)
                for future in ended.done:
                    future.result()
                if not pending:  # what is not there now will not come; the caller says so
                    yield from left.values()
                    break
        except BrokenProcessPool:
            raise StageError(
                "evaluate: a worker process died, most likely for want of memory "
                f"({self._workers} workers); run the same command again, with a smaller "
                "execution.workers if need be: it goes on from the classifiers that are finished"
            ) from None


@dataclass
class _Worker:
    bench: Bench
    params: EvaluateParams
    sources: Sources
    stop: Event
    views: Views | None = None


_WORKER: _Worker | None = None  # set once in each worker process, never in the parent


def _start_worker(sources: Sources, params: EvaluateParams, stop: Event) -> None:
    global _WORKER
    begin_worker()
    torch.set_flush_denormal(True)  # as `torch_threads` does where the work is done in-process
    torch.set_num_threads(1)
    _WORKER = _Worker(sources.bench(params.seed), params, sources, stop)


def _parts(pairs: Sequence[Pair], workers: int) -> list[list[Pair]]:
    """Return what each task does: pairs of one seed, since they share their augmented rows."""
    by_seed: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_seed.setdefault(pair[1], []).append(pair)
    pieces = -(-workers // max(1, len(by_seed)))
    parts = []
    for some in by_seed.values():
        size = -(-len(some) // pieces)
        parts += [some[start : start + size] for start in range(0, len(some), size)]
    return parts


def _work(pairs: Sequence[Pair]) -> None:
    worker = _WORKER
    if worker is None:
        raise StageError("evaluate: the worker was not started; run the same command again")

    def check(step: int) -> None:
        if worker.stop.is_set():
            raise _Stopped

    cpu = torch.device("cpu")
    for pair in pairs:
        worker.views = _views_for(pair, worker.views, worker.bench, worker.params)
        _do(worker.bench, worker.params, pair, cpu, check, worker.views, worker.sources)


def _views_for(pair: Pair, views: Views | None, bench: Bench, params: EvaluateParams) -> Views:
    if views is None or views.repetition != pair[1]:
        return make_views(bench, params, pair[1])
    return views


def _do(
    bench: Bench,
    params: EvaluateParams,
    pair: Pair,
    device: torch.device,
    on_step: Callable[[int], None] | None,
    views: Views,
    sources: Sources,
) -> None:
    """Train a pair and keep what came of it; predictions, written last, mean that it is done."""
    arm, seed = pair
    model = fit_pair(bench, params, pair, device, on_step, views)
    predictions = predict_all(model, bench)
    if seed == KEPT_SEED:
        folder = sources.kept_model(arm)
        shutil.rmtree(folder, ignore_errors=True)
        save_network(model, network_of(bench, params), folder, {"arm": arm.name})
    write_run(run_path(sources.runs, pair), predictions)


def _model_is_kept(sources: Sources, pair: Pair) -> bool:
    folder = sources.kept_model(pair[0])
    return pair[1] != KEPT_SEED or all((folder / name).is_file() for name in (WEIGHTS, DESCRIPTION))


def run_path(runs: Path, pair: Pair) -> Path:
    """Return the file of a finished pair."""
    return runs / f"{pair[0].key()}-{pair[1]}.npz"


def write_run(path: Path, predictions: Predictions) -> None:
    """Keep what a pair predicts."""
    buffer = io.BytesIO()
    np.savez(buffer, **vars(predictions))
    write_bytes(path, buffer.getvalue())


def read_run(path: Path, bench: Bench) -> Predictions | None:
    """Return a kept result, or None where there is none or it is damaged."""
    try:
        # Through memory: np.load leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = Predictions(**{name: file[name] for name in Predictions.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    sizes = len(bench.validation), len(bench.test)
    for rows, n in zip((found.validation, found.test), sizes, strict=True):
        if not _are_labels(rows, (n,), bench.classes):
            return None
    for chances, n in zip(
        (found.validation_probabilities, found.test_probabilities), sizes, strict=True
    ):
        if chances.shape != (n, bench.classes) or chances.dtype != np.float16:
            return None
    shown = (0, 0) if bench.corrupted is None or not found.corrupted.size else bench.corrupted.shape
    return found if _are_labels(found.corrupted, shown[:2], bench.classes) else None


def _are_labels(rows: Labels, shape: tuple[int, ...], classes: int) -> bool:
    if rows.shape != shape or rows.dtype != np.int64:
        return False
    return not rows.size or 0 <= int(rows.min()) <= int(rows.max()) < classes
