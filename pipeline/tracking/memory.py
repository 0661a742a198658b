"""Which tracked run an artifacts folder belongs to: `<artifacts>/.work/mlflow_run.json`.

It lets stages that are run one by one, as DVC does, and a run repeated after a kill share one run.
"""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.folders import WORK, write_json

MEMORY = "mlflow_run.json"


@dataclass(frozen=True)
class RunMemory:
    """Remembers one run id, with the digest of the params that it ran with.

    Attributes:
        path: the file.
    """

    path: Path

    def recall(self, params_digest: str) -> str | None:
        """Return the run id kept for these params, or None; a damaged file counts as none."""
        kept = self._read()
        return kept.get("run_id") if kept.get("params_digest") == params_digest else None

    def last(self) -> str | None:
        """Return the run id that was kept last, whatever its params."""
        return self._read().get("run_id")

    def keep(self, params_digest: str, run_id: str) -> None:
        """Keep the run id; a folder that cannot be written is left to the stages to report."""
        try:
            write_json(self.path, {"params_digest": params_digest, "run_id": run_id})
        except OSError:
            pass

    def claim(self, params_digest: str) -> tuple[str, bool]:
        """Return the mark of the run that is about to be made, and whether it was there already.

        It is kept before the run is made and goes with it: a run that was made and not kept, by a
        process that was killed between the two, is found by its mark.
        """
        told = self._told()
        mark = str(told.get("claim", ""))
        if told.get("claim_digest") == params_digest and _is_id(mark):
            return mark, True
        mark = uuid.uuid4().hex
        try:
            write_json(self.path, {**self._read(), "claim": mark, "claim_digest": params_digest})
        except OSError:
            pass
        return mark, False

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep others from recording to the folder's run in the body; say whether that is so.

        The lock is the system's, so it ends with its process, however that ends. A folder that
        cannot be written is left to the stages to report.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_suffix(".lock")).acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError:
            yield True
            return
        with lock:
            yield True

    def _told(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def _read(self) -> dict[str, str]:
        told = self._told()
        kept = {name: str(told.get(name, "")) for name in ("params_digest", "run_id")}
        return kept if kept["params_digest"] and _is_id(kept["run_id"]) else {}


def run_memory(artifacts: Path) -> RunMemory:
    """Return the memory of an artifacts folder."""
    return RunMemory(artifacts / WORK / MEMORY)


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None
