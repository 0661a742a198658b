"""Small finished stage folders, and a filesystem that dies at a chosen write."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.folders import write_manifest
from pipeline.storage.locations import Location

OLD = {"a.bin": b"alpha", "deep/b.bin": b"beta" * 40, "same.bin": b"alpha"}
NEW = {"a.bin": b"alpha", "deep/b.bin": b"gamma" * 40, "c.bin": b"delta" * 10}


def write_stage(folder: Path, files: Mapping[str, bytes], name: str = "train") -> Path:
    """Write a finished folder of a stage."""
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_manifest(folder, name, "key", {"steps": 1}, {"prepare": "0" * 64})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file, the manifest too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Killed(BaseException):
    """The process dies: nothing catches it, nothing tries again."""


class Dying:
    """A filesystem that dies at its n-th write, before it or after it.

    Where files appear bit by bit, half of the data is there when it dies before the end.
    """

    def __init__(self, fs: Any, at: int, after: bool, whole: bool) -> None:
        self._fs, self._at, self._after, self._whole = fs, at, after, whole
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def put(self, sources: list[str], targets: list[str], **_: Any) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._write(target, Path(source).read_bytes())

    def get(self, sources: list[str], targets: list[str], **_: Any) -> None:
        for source, target in zip(sources, targets, strict=True):
            self._do(lambda s=source, t=target: self._fs.get_file(s, t))

    def pipe_file(self, path: str, data: bytes, **more: Any) -> None:
        self._write(path, data, **more)

    def mv(self, source: str, target: str) -> None:
        self._do(lambda: self._fs.mv(source, target))

    def rm_file(self, path: str) -> None:
        self._do(lambda: self._fs.rm_file(path))

    def _write(self, path: str, data: bytes, **more: Any) -> None:
        if not self._whole and not self._after and self.writes + 1 == self._at:
            self._fs.pipe_file(path, data[: len(data) // 2])
        self._do(lambda: self._fs.pipe_file(path, data, **more))

    def _do(self, action: Any) -> None:
        self.writes += 1
        if self.writes == self._at and not self._after:
            raise Killed
        action()
        if self.writes == self._at:
            raise Killed


def dying(location: Location, at: int, after: bool = False) -> Location:
    """Return the location as a process sees it that dies at its n-th write."""
    return replace(location, fs=Dying(location.fs, at, after, location.whole))  # type: ignore[arg-type]
