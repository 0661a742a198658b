"""Failures of a store: those that pass are tried again, the others are explained."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, StageError
from pipeline.storage import transfers
from pipeline.storage.locations import Location


class DriverError(Exception):
    """As drivers raise it: no OSError."""

    __module__ = "botocore.exceptions"


def failing(location: Location, errors: list[Exception]) -> tuple[Location, list[str]]:
    """Return the location with a filesystem that raises these first, and the calls made of it."""
    calls: list[str] = []

    class Failing:
        def __getattr__(self, name: str) -> Any:
            real = getattr(location.fs, name)
            if not callable(real):
                return real

            def call(*arguments: Any, **more: Any) -> Any:
                calls.append(name)
                if errors:
                    raise errors.pop(0)
                return real(*arguments, **more)

            return call

    return replace(location, fs=Failing()), calls  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("reset"), TimeoutError(), OSError(5, "busy"), DriverError("no endpoint")],
)
def test_what_can_pass_is_tried_again(location: Location, error: Exception) -> None:
    flaky, _ = failing(location, [error] * 3)
    transfers.write(flaky, location.path("x", "a"), b"data")
    assert transfers.read(location, location.path("x", "a"), 10) == b"data"


def test_the_waits_grow(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transfers, "WAITS_SECONDS", (0.5, 2.0, 8.0))
    monkeypatch.setattr(transfers.time, "sleep", waited.append)
    flaky, calls = failing(location, [TimeoutError()] * 9)
    with pytest.raises(StageError, match=r"the store fails .TimeoutError"):
        transfers.listing(flaky)
    assert (waited, calls) == ([0.5, 2.0, 8.0], ["find"] * 4)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError("Access Denied"), InputError, "may not be read or written .Access Denied"),
        (OSError(errno.ENOSPC, "full"), StageError, "no space left .*run the same command again"),
        (NotADirectoryError("x"), InputError, "a file stands in the way"),
    ],
)
def test_what_cannot_pass_is_said_at_once(
    location: Location, error: Exception, kind: type[Exception], message: str
) -> None:
    flaky, calls = failing(location, [error])
    with pytest.raises(kind, match=message):
        transfers.listing(flaky)
    assert calls == ["find"]


def test_no_secret_of_a_driver_is_told(location: Location) -> None:
    signed = DriverError("http://key:hunter2@host/b?X-Amz-Signature=hunter2 failed")
    flaky, _ = failing(location, [signed] * 4)
    with pytest.raises(StageError) as caught:
        transfers.listing(flaky)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_mistakes_in_code_are_not_hidden(location: Location) -> None:
    flaky, calls = failing(location, [ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        transfers.listing(flaky)
    assert calls == ["find"]


def test_a_failed_batch_is_sent_again(location: Location, tmp_path: Path) -> None:
    pairs = []
    for k in range(5):
        (tmp_path / f"{k}").write_bytes(bytes([k]) * (k + 1))
        pairs.append((tmp_path / f"{k}", location.path("x", f"o{k}")))
    flaky, _ = failing(location, [TimeoutError(), TimeoutError()])
    transfers.send_files(flaky, pairs)
    assert transfers.listing(location, "x") == {f"o{k}": k + 1 for k in range(5)}


def test_batches_are_bounded_in_number_and_bytes() -> None:
    def sizes(each: int, count: int) -> list[int]:
        return [len(batch) for batch in transfers._batches(range(count), [each] * count)]

    assert sizes(1, 130) == [64, 64, 2]
    assert sizes(100 << 20, 5) == [2, 2, 1]
    assert sizes(1 << 30, 2) == [1, 1]


def test_what_is_too_large_is_not_read(location: Location) -> None:
    transfers.write(location, location.path("big"), b"12345")
    assert transfers.read(location, location.path("big"), 5) == b"12345"
    with pytest.raises(StageError, match="big has 5 bytes, more than 4"):
        transfers.read(location, location.path("big"), 4)


def test_only_the_first_creates(location: Location) -> None:
    path = location.path("lock")
    assert transfers.create(location, path, b"one")
    assert not transfers.create(location, path, b"two")
    assert transfers.read(location, path, 10) == b"one"
    assert transfers.listing(location) == {"lock": 3}


def test_what_is_gone_is_removed(location: Location) -> None:
    transfers.remove(location, [location.path("nothing")])
    assert transfers.read(location, location.path("nothing"), 1) is None
    assert transfers.listing(location, "no", "folder") == {}
