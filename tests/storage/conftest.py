"""Stores of each kind, and no waiting between tries."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import transfers
from pipeline.storage.locations import Location, open_location


@pytest.fixture(params=["memory", "file"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty store in memory, and one in a folder."""
    if request.param == "file":
        yield open_location(f"file://{tmp_path}/store")
    else:
        yield open_location(f"memory://store-{uuid.uuid4().hex}/run")
        MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "WAITS_SECONDS", (0.0, 0.0, 0.0))
