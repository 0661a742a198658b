"""Fuzzes every reader, the decoder and the params for a bounded time; run it from the repository.

    python tests/corpus/fuzz.py --seconds 600
    python tests/corpus/fuzz.py --format npz --seed 1234567 --rounds 1
    python tests/corpus/fuzz.py --format npz --seconds 600 --atheris

Real files are changed at random; each round has a seed of its own, which repeats it alone. What is
neither read, set aside nor refused by an InputError is printed, as is what takes over 5 seconds.
With atheris (pip install atheris; not in CI) the coverage of pipeline/ guides the changes.
"""

import argparse
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

if "--atheris" in sys.argv:
    import importlib
    import pkgutil

    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["pipeline"]):
        import pipeline.data.decoding
        import pipeline.readers

        for found in pkgutil.iter_modules(pipeline.readers.__path__):
            importlib.import_module(f"pipeline.readers.{found.name}")

from corpus import image_files  # noqa: E402 (the path above comes first)
from readers.fixtures import FORMATS  # noqa: E402
from readers.reading import LIMITS  # noqa: E402
from readers.test_fuzz import PARSED  # noqa: E402

from pipeline.data.decoding import decode_image, inspect_image, quiet_pillow  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.params import Columns, load_params  # noqa: E402
from pipeline.readers.read import read_format  # noqa: E402
from pipeline.readers.recognise import Recognised, recognise  # noqa: E402
from pipeline.readers.source import Crop  # noqa: E402

HANG_SECONDS = 5
_MAX_STEPS = 4
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD_TEXTS = (b"\0", b"\x1b[2J", b"../", b"NaN", b"1e999", b"-1", b'"', b"<!DOCTYPE a>", b"[" * 999)


@dataclass(frozen=True)
class Target:
    """Something that is fuzzed.

    Attributes:
        sound: bytes that it reads.
        try_it: reads changed bytes; raises where that is a finding.
    """

    sound: bytes
    try_it: Callable[[bytes], None]


def target(name: str, root: Path) -> Target:
    """Return a target; its files lie below `root`."""
    if name == "params":
        return _params(root / "params.yaml")
    if name in image_files.SOUND:
        return Target(image_files.SOUND[name][1](1), _try_image)
    kind, write = FORMATS[name]
    path = write(root / "set")
    return _reader(kind, path, root / "set" / PARSED[name])


def names() -> list[str]:
    return [*PARSED, *image_files.SOUND, "params"]


def mutate(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, _MAX_STEPS)):
        at, size = chance.randrange(len(data) + 1), 1 << chance.randrange(12)
        match chance.randrange(8):
            case 0:
                data = data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at + 8 :]
            case 1:
                data = data[:at] + data[at + size :]
            case 2:
                data = data[:at] + data[at : at + size] * 3 + data[at:]
            case 3:
                data = data[:at]
            case 4:
                number = struct.pack(chance.choice("<>") + "I", chance.choice(_ODD_NUMBERS))
                data = data[:at] + number[: chance.choice((1, 2, 4))] + data[at + 4 :]
            case 5:
                data = data[:at] + chance.choice(_ODD_TEXTS) + data[at:]
            case 6:
                other = chance.randrange(len(data) + 1)
                data = data[:at] + data[other : other + size] + data[at + size :]
            case _:
                flipped = bytes(one ^ (1 << chance.randrange(8)) for one in data[at : at + 1])
                data = data[:at] + flipped + data[at + 1 :]
    return data


def fuzz(name: str, seeds: Iterator[int], until: float) -> tuple[int, int]:
    """Return how many rounds were run until a time, and how many found something."""
    rounds = findings = 0
    with tempfile.TemporaryDirectory() as root, quiet_pillow():
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            one = target(name, Path(root))
            one.try_it(one.sound)
        for seed in seeds:
            if time.monotonic() > until:
                break
            rounds += 1
            try:
                with _at_most(HANG_SECONDS):
                    one.try_it(mutate(one.sound, random.Random(seed)))
            except Exception as error:
                findings += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                _say(f"{name} --seed {seed}: {type(error).__name__}: {str(error)[:200]!a}")
                _say(f"    {place.filename}:{place.lineno}")
    return rounds, findings


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers for a bounded time.")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--format", choices=names(), help="one target instead of all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--rounds", type=int, help="of each target, at most")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; one format")
    given = parser.parse_args()
    chosen = [given.format] if given.format else names()
    if given.atheris:
        if not given.format:
            parser.error("--atheris needs --format")
        return _guided(given.format, given.seconds)
    found = 0
    start = time.monotonic()
    for number, name in enumerate(chosen, start=1):
        last = given.seed + (given.rounds or sys.maxsize - given.seed)
        until = start + given.seconds * number / len(chosen)
        rounds, findings = fuzz(name, iter(range(given.seed, last)), until)
        _say(f"{name}: {rounds} rounds, {findings} findings")
        found += findings
    return int(found > 0)


def _params(path: Path) -> Target:
    def try_it(data: bytes) -> None:
        path.write_bytes(data)
        try:
            load_params(path)
        except InputError:
            pass

    return Target((ROOT / "params.yaml").read_bytes()[:6_000], try_it)


def _try_image(data: bytes) -> None:
    inspect_image(data, LIMITS.image)
    decode_image(data, LIMITS.image)


def _reader(kind: str, path: Path, file: Path) -> Target:
    found = Recognised(kind, "", str(path))  # type: ignore[arg-type]

    def try_it(data: bytes) -> None:
        file.unlink()  # a file that is mapped into memory is replaced, not rewritten
        file.write_bytes(data)
        try:
            recognise(str(path))
            source = read_format(found, LIMITS, Columns())
        except InputError:
            return
        for row in range(0, len(source), 5):
            payload = source.contents.fetch(row)
            payload = payload.of if isinstance(payload, Crop) else payload
            if isinstance(payload, bytes | Path):
                decode_image(payload, LIMITS.image)
            source.contents.digest(row)
        if not all(item.file.isprintable() for item in source.quarantine):
            raise ValueError("a name in the quarantine cannot be shown")

    return Target(file.read_bytes(), try_it)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _guided(name: str, seconds: float) -> int:
    folder = Path(tempfile.mkdtemp())
    one = target(name, folder)
    (folder / "seeds").mkdir()
    (folder / "seeds" / "sound").write_bytes(one.sound)
    options = [f"-max_total_time={int(seconds)}", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(folder / "seeds")], one.try_it)
    try:
        with quiet_pillow():
            atheris.Fuzz()  # ends the process itself
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
