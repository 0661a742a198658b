"""Which files are opened as tables or JSON at all."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.readers.hf_files import STATE, saved_parts
from pipeline.readers.limits import ReadLimits
from pipeline.readers.tables import check_file, read_table


def read(path: Path) -> None:
    list(read_table(path, {"path": "path"}, ("path",), ReadLimits()))


def test_a_file_may_have_as_many_bytes_as_the_limit_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes(b"path\n")
    check_file(path, 5, "at most five")
    with pytest.raises(InputError, match=r"some\.csv: 5 bytes; at most four"):
        check_file(path, 4, "at most four")


@pytest.mark.parametrize("name", ["some.csv", "some.jsonl", "some.parquet"])
def test_a_folder_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="a folder, pipe or device, where a file is expected"):
        read(tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "some.csv")
    with pytest.raises(InputError, match="a folder, pipe or device"):
        read(tmp_path / "some.csv")


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read \(No such file"):
        read(tmp_path / "none.csv")


def test_a_state_that_is_too_large_says_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.readers.hf_files._MAX_JSON_BYTES", 1)
    (tmp_path / STATE).write_text("{}")
    with pytest.raises(InputError, match=r"2 bytes; at most 1 bytes of JSON are read"):
        saved_parts(tmp_path)
