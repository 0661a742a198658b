"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Layout (http://yann.lecun.com/exdb/mnist, "The IDX file format"): two zero bytes, the type (8 =
unsigned byte), the number of dimensions, each dimension as a big-endian 32-bit integer, the data.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError

_MAX_BYTES = 1 << 31
_CHUNK_BYTES = 1 << 20
_REMEDY = "download the file again, or name the right folder in prepare.path"


def find_idx(folder: Path, prefix: str, kind: str, dimensions: int) -> Path | None:
    """Return the IDX file of `prefix` (train, t10k) and `kind` (images, labels), if there is one.

    A plain file is preferred to its gzipped twin.
    """
    for joint in ("-", "."):
        for ending in ("", ".gz"):
            path = folder / f"{prefix}-{kind}{joint}idx{dimensions}-ubyte{ending}"
            if path.is_file():
                return path
    return None


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file of unsigned bytes.

    Never reads more than the header declares, plus one byte, and never declares more than 2 GiB:
    a gzip bomb ends there.

    Raises:
        InputError: the magic number, a dimension or the length is wrong, or the gzip is damaged.
    """
    try:
        with _open(path) as stream:
            shape = _read_header(stream, path, dimensions)
            declared = math.prod(shape)
            data = _read_at_most(stream, declared + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip file ({error}); {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) != declared:
        held = "more" if len(data) > declared else f"only {len(data)}"
        raise InputError(
            f"{path}: declares {' x '.join(map(str, shape))} = {declared} bytes and holds {held}; "
            f"{_REMEDY}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _read_header(stream: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    length = 4 + 4 * dimensions
    header = stream.read(length)
    expected = 0x0800 + dimensions
    magic = int.from_bytes(header[:4], "big")
    if len(header) < 4 or magic != expected:
        raise InputError(
            f"{path}: begins with 0x{header[:4].hex()}, not with 0x{expected:08x} (IDX, unsigned "
            f"bytes, {dimensions} dimensions); {_REMEDY}"
        )
    if len(header) < length:
        raise InputError(f"{path}: ends within its header of {length} bytes; {_REMEDY}")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape or math.prod(shape) > _MAX_BYTES:
        raise InputError(
            f"{path}: declares {' x '.join(map(str, shape))} bytes; between 1 and {_MAX_BYTES} "
            f"are read; {_REMEDY}"
        )
    return shape


def _read_at_most(stream: IO[bytes], limit: int) -> bytearray:
    # In chunks, so that memory grows with what is there and not with what the header claims.
    data = bytearray()
    while len(data) < limit and (chunk := stream.read(min(_CHUNK_BYTES, limit - len(data)))):
        data += chunk
    return data
