from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readers.fixtures import csv_manifest, table
from readers.reading import LIMITS, pixels, reasons

from pipeline.data.decoding import Rejected
from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.manifest import read_manifest
from pipeline.readers.recognise import recognise
from pipeline.readers.source import Source


def write(root: Path, text: str, name: str = "list.csv") -> Path:
    (root / name).write_text(text)
    return root / name


def read(table: Path, **columns: str) -> Source:
    return read_manifest(table, LIMITS, Columns(**columns))


def test_all_columns_are_read(tmp_path: Path) -> None:
    text = (
        "\ufeffPath; LABEL ;split;group;time;mask;text\n"
        'a.png;cat;train;g1;2024-05-31T10:00:00+02:00;m/a.png;"a cat; asleep"\n'
        "./b//b.png;dog;Test;;2024-06-01;;\n"
        "c.png;dog;;g1;;m/c.png;\n"
    )
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    source = read(tmp_path)
    assert source.names == ("a.png", "b/b.png", "c.png")
    assert source.given == ("train", "test", None)
    assert source.groups == ("g1", None, "g1")
    assert source.times == ("2024-05-31T08:00:00", "2024-06-01T00:00:00", None)
    assert source.texts == ("a cat; asleep", None, None)
    assert source.masks is not None
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.png").write_bytes(b"a mask")
    assert source.masks.fetch(0) == b"a mask"
    assert source.masks.fetch(1) == Rejected("no file", "the row names none")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, "file,class\na.png,x\nb.png,y\n")
    assert read(path, path="file", label="class").classes == ("x", "y")
    with pytest.raises(InputError, match=r"no column 'path' \(prepare.columns.path\); it has: fi"):
        read(path)


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,time\na,10,9\nb,9,10.5\nc,2,100\n")
    source = read(path)
    assert source.classes == ("2", "9", "10")
    assert source.times == ("009", "010.5", "100")


def test_each_bad_row_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "path,label,split,time\n"
        "good.png,a,,2024-01-01\n"
        "../up.png,a,,\n"
        "/etc/passwd,a,,\n"
        "C:\\x.png,a,,\n"
        "sub/../../up.png,a,,\n"
        "nul\0.png,a,,\n"
        ",a,,\n"
        "blank.png, ,,\n"
        "split.png,a,holdout,\n"
        "ansi.png,\x1b[31mred,,\n"
        f"long.png,{'x' * 300},,\n"
        "time.png,a,,yesterday\n"
        "short.png,a\n"
        "good.png,a,,\n"
        "other.png,b,,\n"
        "two.png,a,,\n"
        "two.png,b,,\n"
        "two.png,b,,\n",
    )
    source = read(path)
    assert source.names == ("good.png", "other.png")
    assert [(item.reason, item.file) for item in source.quarantine] == [
        ("leads out of the folder", "row 3: ../up.png"),
        ("leads out of the folder", "row 4: /etc/passwd"),
        ("leads out of the folder", "row 5: C:\\x.png"),
        ("leads out of the folder", "row 6: sub/../../up.png"),
        ("leads out of the folder", "row 7: nul\\x00.png"),
        ("no path", "row 8"),
        ("no label", "blank.png"),
        ("unknown split", "split.png"),
        ("label that cannot be shown", "ansi.png"),
        ("label that cannot be shown", "long.png"),
        ("malformed row", "row 14"),
        ("listed more than once", "good.png"),
        ("label conflict", "two.png"),
        ("label conflict", "two.png"),
        ("label conflict", "two.png"),
        ("unreadable time", "time.png"),
    ]


def test_formulas_and_markup_are_only_text(tmp_path: Path) -> None:
    path = write(
        tmp_path, "path,label\na.png,=cmd|' /C calc'!A0\nb.png,<script>alert(1)</script>\n"
    )
    assert read(path).classes == ("<script>alert(1)</script>", "=cmd|' /C calc'!A0")


def test_links_out_of_the_folder_are_rejected_when_fetched(tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = csv_manifest(root)
    (tmp_path / "secret.png").write_bytes((root / "images" / "000.png").read_bytes())
    (root / "images" / "000.png").unlink()
    (root / "images" / "000.png").symlink_to(tmp_path / "secret.png")
    (root / "images" / "001.png").unlink()
    (root / "images" / "001.png").symlink_to("002.png")
    source = read(path)
    found = source.contents.fetch(0)
    assert isinstance(found, Rejected)
    assert found.reason == "leads out of the folder"
    assert (pixels(source, 1) == pixels(source, 2)).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "no usable item"),
        ("path,label\na.png,x\nb.png,x\n", "only the class 'x'; at least 2 needed"),
        ("path,label,path\na,b,c\n", "2 columns are named 'path'"),
        ('path,label\n"a.png,x\n' + "y" * 200_000, "line .*: field larger|line 2"),
        ('path,label\n"a"b,x\n', "line 2: .*close its quotes"),
        ("path,label\n" + "y" * (1 << 20), "more than 1048576 characters"),
        (",".join(["path", "label", *map(str, range(2000))]), "2002 columns; at most 2000"),
        ("path,label\n,x\n../a,y\n", "no usable item; set aside: 1 no path, 1 leads out"),
    ],
)
def test_a_table_of_no_use_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, text))


def test_limits_are_kept(tmp_path: Path) -> None:
    path = csv_manifest(tmp_path)
    with pytest.raises(InputError, match="max_rows"):
        read_manifest(path, replace(LIMITS, max_rows=39))
    with pytest.raises(InputError, match="max_classes"):
        read_manifest(path, replace(LIMITS, max_classes=3))
    with pytest.raises(InputError, match="tables of at most 100 are read"):
        read_manifest(path, replace(LIMITS, max_metadata_bytes=100))


def test_bytes_that_are_no_utf8_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,label\na\xff.png,x\nb.png,\xff\nc.png,y\n")
    source = read(tmp_path)
    assert source.names == ("a\\xff.png", "c.png")
    assert reasons(source) == {"b.png": "label that cannot be shown"}
    (tmp_path / "a\udcff.png").write_bytes(b"an image")
    assert source.contents.fetch(0) == b"an image"


def test_parquet_cells_of_other_types(tmp_path: Path) -> None:
    columns = table(tmp_path)
    path = tmp_path / "list.parquet"
    floats = [float(label) for label in columns["label"][:-1]] + [float("nan")]
    rows = {"path": columns["path"], "label": floats, "group": list(range(40))}
    pq.write_table(pa.table(rows), path)
    source = read(path)
    assert source.classes == ("0", "1", "2", "3")  # what pandas makes of integers with a gap
    assert reasons(source) == {"images/039.png": "no label"}
    assert source.groups[3] == "3"
    pq.write_table(pa.table(rows | {"label": [["a"]] * 40}), path)
    with pytest.raises(InputError, match="column of label: holds list"):
        read(path)


def test_a_text_that_many_rows_share_takes_its_memory_once(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    rows = 2_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows), pa.array(["x" * 1_000_000]))
    names = [f"{i}.png" for i in range(rows)]
    pq.write_table(pa.table({"path": names, "label": column}), path)
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match="2000 label that cannot be shown"):
        read(path)  # 2 GB, were the dictionary written out
    assert pa.default_memory_pool().max_memory() - before < 500_000_000


def test_a_damaged_parquet_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    with pytest.raises(InputError, match="damaged Parquet"):
        read(path)


def test_a_folder_is_a_manifest_by_its_columns(tmp_path: Path) -> None:
    csv_manifest(tmp_path)
    assert recognise(str(tmp_path)).format == "manifest"
    (tmp_path / "a").mkdir()
    write(tmp_path, "x,y\n1,2\n")
    assert recognise(str(tmp_path)).format == "folder"
    with pytest.raises(InputError, match="no column 'path'"):
        read(tmp_path)
