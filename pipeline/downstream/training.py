"""Train the classifiers of all arms and seeds, in worker processes or in this one.

The result of a (arm, seed) pair is the predicted class of every validation and test row. It is a
function of the data, the settings and the pair alone: each classifier uses one processor thread,
so the number of workers changes nothing. A finished pair is kept in a file of the work folder,
where an interrupted run finds it again.
"""

import io
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.augment import build_augmentation
from pipeline.data.images import Images, to_model
from pipeline.data.store import (
    Samples,
    concatenate,
    read_info,
    read_samples,
    without_held_out_repeats,
)
from pipeline.device import pick_device, torch_threads, usable_cores
from pipeline.downstream.arms import Arm, Pools, draw_rows, make_pools
from pipeline.errors import StageError
from pipeline.features.classifier import (
    FitSettings,
    SmallCNN,
    build_classifier,
    fit_classifier,
    predict,
)
from pipeline.folders import write_bytes
from pipeline.params import EvaluateParams
from pipeline.seeds import derive_seed, numpy_generator

Pair = tuple[Arm, int]
_Key = tuple[str, int]


@dataclass(frozen=True)
class Predictions:
    """What one classifier says.

    Attributes:
        validation: (N,) predicted class of each validation row, in the store's order.
        test: (N,) predicted class of each test row, in the store's order.
    """

    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bench:
    """The data that every classifier of the comparison works on, in memory.

    Attributes:
        images: (N, H, W, C) uint8 training rows, real ones first.
        labels: (N,) int64 class of each.
        pools: which of them are real and synthetic, by class.
        validation: (N, H, W, C) uint8.
        test: (N, H, W, C) uint8.
        classes: number of classes.
        real_images: number of real training rows.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    pools: Pools
    validation: Images
    test: Images
    classes: int
    real_images: int


class _Stopped(Exception):
    """The parent asked the workers to stop."""


def read_bench(dataset: Path, accepted: Path) -> Bench:
    """Read the sample stores `prepare/dataset` and `synthesize/accepted`."""
    classes = len(read_info(dataset).classes)
    rows = without_held_out_repeats(read_samples(dataset, ("train", "validation", "test")))
    split = np.asarray(rows.splits, dtype=object)
    training: Samples = concatenate(
        [rows.take(split == "train"), read_samples(accepted, ("train",))]
    )
    synthetic = np.asarray([origin == "synthetic" for origin in training.origins], dtype=bool)
    return Bench(
        images=training.images,
        labels=training.labels,
        real_images=int((~synthetic).sum()),
        pools=make_pools(training.labels, synthetic, classes),
        validation=rows.images[split == "validation"],
        test=rows.images[split == "test"],
        classes=classes,
    )


def classifier_steps(wanted: int | None, training_images: int) -> int:
    """Return the optimiser steps of every arm: those wanted, or 1.25 a real image, 250 to 2,500."""
    return wanted or min(max(round(1.25 * training_images), 250), 2500)


def train_pair(
    bench: Bench,
    params: EvaluateParams,
    pair: Pair,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> Predictions:
    """Train one classifier and return its predictions; the caller sets the number of threads."""
    model = fit_pair(bench, params, pair, device, on_step)
    return Predictions(
        validation=predict(model, bench.validation).argmax(axis=1).astype(np.int64),
        test=predict(model, bench.test).argmax(axis=1).astype(np.int64),
    )


def fit_pair(
    bench: Bench,
    params: EvaluateParams,
    pair: Pair,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> SmallCNN:
    """Train one classifier and return it; the caller sets the number of threads."""
    arm, seed = pair
    side, channels = bench.images.shape[1], bench.images.shape[3]
    weights = derive_seed(params.seed, "evaluate", "weights", seed)
    model = build_classifier(channels, bench.classes, params.base_channels, side, weights)
    model.to(device)
    augment = build_augmentation(arm.augmentation, params.horizontal_flip)

    def next_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = numpy_generator(params.seed, "evaluate", "rows", seed, step)
        rows = draw_rows(arm, bench.pools, params.batch_images, random)
        look = derive_seed(params.seed, "evaluate", "augmentation", seed, step)
        return to_model(augment(bench.images[rows], look)), torch.from_numpy(bench.labels[rows])

    steps = classifier_steps(params.steps, bench.real_images)
    settings = FitSettings(steps, params.learning_rate, params.weight_decay, weights)
    fit_classifier(model, next_batch, settings, on_step)
    return model


def train_pairs(
    pairs: Sequence[Pair],
    params: EvaluateParams,
    dataset: Path,
    accepted: Path,
    runs: Path,
    on_done: Callable[[int, int], None],
) -> dict[_Key, Predictions]:
    """Return the predictions of every pair, keyed by (arm name, seed).

    Pairs whose file stands in `runs` are read, not trained again; a damaged file is replaced.

    Args:
        pairs: arm and seed index of each classifier.
        params: the stage's section; `execution` says where the work runs.
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows.
        runs: folder of the finished pairs.
        on_done: told finished and total pairs, at the start and after each pair.

    Raises:
        StageError: a worker process died.
    """
    bench = read_bench(dataset, accepted)
    sizes = (len(bench.validation), len(bench.test), bench.classes)
    done: dict[_Key, Predictions] = {}
    waiting: list[Pair] = []
    for pair in pairs:
        found = _read_run(_run_path(runs, pair), *sizes)
        if found is None:
            waiting.append(pair)
        else:
            done[_key(pair)] = found
    on_done(len(done), len(pairs))
    device = pick_device(params.execution.device)
    workers = min(params.execution.workers or usable_cores(), len(waiting))
    if device.type == "cuda" or workers <= 1:
        finished = _train_here(waiting, bench, params, device, runs)
    else:
        finished = _train_in_workers(waiting, params, dataset, accepted, runs, workers)
    with closing(finished):  # an error below must not leave the workers to the garbage collector
        for pair in finished:
            result = _read_run(_run_path(runs, pair), *sizes)
            if result is None:
                raise StageError(
                    f"{_run_path(runs, pair)}: not readable after it was written; check the disk "
                    "and run the same command again"
                )
            done[_key(pair)] = result
            on_done(len(done), len(pairs))
    return done


def _train_here(
    pairs: Sequence[Pair], bench: Bench, params: EvaluateParams, device: torch.device, runs: Path
) -> Generator[Pair, None, None]:
    for pair in pairs:
        with torch_threads(1):
            predictions = train_pair(bench, params, pair, device)
        _write_run(_run_path(runs, pair), predictions)
        yield pair


def _train_in_workers(
    pairs: Sequence[Pair],
    params: EvaluateParams,
    dataset: Path,
    accepted: Path,
    runs: Path,
    workers: int,
) -> Generator[Pair, None, None]:
    # spawn: torch's threads do not survive a fork. A spawned worker reads the stores itself, so
    # that no array goes through a pipe.
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        workers,
        context,
        initializer=_start_worker,
        initargs=(dataset, accepted, params, runs, stop),
    )
    try:
        pending: dict[Future[None], Pair] = {pool.submit(_work, pair): pair for pair in pairs}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                future.result()
                yield pending.pop(future)
    except BrokenProcessPool:
        raise StageError(
            f"evaluate: a worker process died, most likely for want of memory ({workers} workers); "
            "run the same command again, with a smaller execution.workers if need be: it goes on "
            "from the classifiers that are finished"
        ) from None
    finally:
        # Also on Ctrl-C: nothing new is begun, busy workers give up at their next step, and no
        # child is left when this returns.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Worker:
    bench: Bench
    params: EvaluateParams
    runs: Path
    stop: Event


_WORKER: _Worker | None = None  # set once in each worker process, never in the parent


def _start_worker(
    dataset: Path, accepted: Path, params: EvaluateParams, runs: Path, stop: Event
) -> None:
    global _WORKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_flush_denormal(True)  # as `torch_threads` does where the work is done in-process
    torch.set_num_threads(1)
    _WORKER = _Worker(read_bench(dataset, accepted), params, runs, stop)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(pair: Pair) -> None:
    worker = _WORKER
    if worker is None:
        raise StageError("evaluate: the worker was not started; run the same command again")

    def check(step: int) -> None:
        if worker.stop.is_set():
            raise _Stopped

    predictions = train_pair(worker.bench, worker.params, pair, torch.device("cpu"), check)
    _write_run(_run_path(worker.runs, pair), predictions)


def _key(pair: Pair) -> _Key:
    return pair[0].name, pair[1]


def _run_path(runs: Path, pair: Pair) -> Path:
    return runs / f"{pair[0].name}-{pair[1]}.npz"


def _write_run(path: Path, predictions: Predictions) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, validation=predictions.validation, test=predictions.test)
    write_bytes(path, buffer.getvalue())


def _read_run(path: Path, validation: int, test: int, classes: int) -> Predictions | None:
    """Return a kept result, or None where there is none or it is damaged."""
    try:
        # Through memory: np.load leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = Predictions(file["validation"], file["test"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    for rows, n in ((found.validation, validation), (found.test, test)):
        if rows.shape != (n,) or rows.dtype != np.int64:
            return None
        if n and not 0 <= rows.min() <= rows.max() < classes:
            return None
    return found
