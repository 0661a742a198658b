"""The user's own training scripts as arms: each without synthetic rows, and with them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.store import Samples, StoreInfo, concatenate
from pipeline.downstream.arms import Arm
from pipeline.downstream.bench import Bench, Probabilities
from pipeline.downstream.command import TaskData, filled, run_command, write_task_data
from pipeline.downstream.fitting import Pair, Predictions
from pipeline.downstream.training import read_run, run_path, write_run
from pipeline.hashing import digest_file, digest_json
from pipeline.params import BY_USER, EvaluateParams
from pipeline.tracking.tracker import Tracker

_TASKS = "commands"


def scripts_digest(params: EvaluateParams) -> str:
    """Return the digest of the files that the commands name; "" where they name none.

    Files are arguments that are the path of one, with `{project}` filled in. The program itself
    counts where it lies in the project: an interpreter elsewhere is the machine's.
    """
    found = {}
    for name, user in params.commands.items():
        for number, argument in enumerate(user.command):
            whole = filled(argument, {"project": Path.cwd()})
            path = Path(whole)
            if (number or whole != argument) and path.is_absolute() and path.is_file():
                found[f"{name} {number}"] = digest_file(path)
    return digest_json(found) if found else ""


class UserArms:
    """Runs the scripts of `evaluate.commands`; a finished run is kept, as classifiers are."""

    def __init__(
        self,
        params: EvaluateParams,
        info: StoreInfo,
        splits: dict[str, Samples],
        bench: Bench,
        steps: int,
        runs: Path,
        tracker: Tracker,
    ) -> None:
        """Take what the scripts are to work on.

        Args:
            params: the stage's section.
            info: of the prepared data.
            splits: train, validation, test and synthetic -> their rows.
            bench: to check kept runs by.
            steps: optimiser steps of the other arms.
            runs: folder of the finished runs.
            tracker: told how far the scripts are.
        """
        self._params, self._info, self._splits = params, info, splits
        self._bench, self._steps, self._runs, self._tracker = bench, steps, runs, tracker
        self._data: dict[str, TaskData] = {}

    def results(self, seeds: Sequence[int]) -> dict[Pair, Predictions]:
        """Return what the scripts predict with these seeds.

        Raises:
            InputError: a script fails, or its predictions are missing or wrong.
        """
        arms = [(name, arm) for name in self._params.commands for arm in _arms(name, self._params)]
        if not len(self._splits["synthetic"]):
            arms = [(name, arm) for name, arm in arms if arm.role == "baseline"]
        pairs = [(name, (arm, seed)) for seed in seeds for name, arm in arms]
        found: dict[Pair, Predictions] = {}
        for number, (name, pair) in enumerate(pairs):
            self._tracker.progress("your scripts", number, len(pairs), "runs")
            kept = read_run(run_path(self._runs, pair), self._bench)
            found[pair] = self._run(name, pair) if kept is None else kept
        if pairs:
            self._tracker.progress("your scripts", len(pairs), len(pairs), "runs")
        return found

    def _run(self, name: str, pair: Pair) -> Predictions:
        arm, seed = pair
        user = self._params.commands[name]
        work = self._runs / _TASKS / f"{arm.name}-{seed}"
        said = run_command(
            user.command, self._task(arm), arm.name, seed, self._steps, work, user.timeout_seconds
        )
        shutil.rmtree(work, ignore_errors=True)
        predictions = Predictions(
            said.validation,
            said.test,
            self._chances(said.validation_probabilities),
            self._chances(said.test_probabilities),
            np.zeros((0, 0), dtype=np.int64),
        )
        write_run(run_path(self._runs, pair), predictions)
        return predictions

    def _task(self, arm: Arm) -> TaskData:
        if arm.name not in self._data:
            train = [self._splits["train"]]
            if arm.share is not None:
                train.append(self._splits["synthetic"])
            self._data[arm.name] = write_task_data(
                self._runs / _TASKS / arm.name,
                concatenate(train),
                self._splits["validation"],
                self._splits["test"],
                self._info.classes,
                self._info.image_size_px,
                self._info.image_mode,
                arm.share,
            )
        return self._data[arm.name]

    def _chances(self, said: npt.NDArray[np.float32]) -> Probabilities:
        """Return (N, K) probabilities, not a number where the script gives none."""
        unknown = np.full((len(said), self._bench.classes), np.nan, dtype=np.float16)
        return said.astype(np.float16) if said.shape[1] else unknown


def _arms(name: str, params: EvaluateParams) -> tuple[Arm, Arm]:
    mixed = Arm(
        f"{name}{BY_USER}", "synthetic", params.mixed_shares[0], added="synthetic", by_user=True
    )
    return Arm(name, "baseline", by_user=True), mixed
