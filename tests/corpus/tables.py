"""Tables: rows of CSV and JSON that lie or climb, and tables that are damaged as a whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from corpus.case import Case, Outcome
from corpus.places import png

from pipeline.readers.naming import clean_path, printable

OUT = "leads out of the folder"
_HEAD = b"path,label\n"
_REPEATED = pa.DictionaryArray.from_arrays([0] * 100_000, ["x" * 10_000])


def cases() -> list[Case]:
    return [*_csv_rows(), *_json_rows(), *_whole_csv(), *_whole_parquet()]


def _csv_rows() -> list[Case]:
    # Name of the case -> (path, the other cells of the row, what becomes of it, why).
    rows: dict[str, tuple[str, str, Outcome, str]] = {
        "climbs": ("../outside.png", "0,,,,,", "quarantine", OUT),
        "climbs from within": ("images/../../outside.png", "0,,,,,", "quarantine", OUT),
        "absolute": ("/etc/passwd", "0,,,,,", "quarantine", OUT),
        "backslashes": ("..\\outside.png", "0,,,,,", "quarantine", OUT),
        "drive": ("C:/outside.png", "0,,,,,", "quarantine", OUT),
        "zero byte": ("images/a\0.png", "0,,,,,", "quarantine", OUT),
        "file url": ("file:///etc/passwd", "0,,,,,", "quarantine", "unreadable"),
        "web url": ("http://169.254.169.254/latest", "0,,,,,", "quarantine", "unreadable"),
        "home": ("~/secret.png", "0,,,,,", "quarantine", "unreadable"),
        "variable": ("$HOME/secret.png", "0,,,,,", "quarantine", "unreadable"),
        "no such file": ("images/none.png", "0,,,,,", "quarantine", "unreadable"),
        "a folder": ("images", "0,,,,,", "quarantine", "not a regular file"),
        "the table itself": ("list.csv", "0,,,,,", "quarantine", "not an image"),
        "a path too long": ("x" * 4_000, "0,,,,,", "quarantine", "unreadable"),
        "a label that is blank": ("images/1.png", " ,,,,,", "quarantine", "no label"),
        "a label with escape": ("images/2.png", "\x1b[2J,,,,,", "quarantine", "label that cannot"),
        "a label that turns": ("images/3.png", "a\u202eb,,,,,", "quarantine", "label that cannot"),
        "a label too long": (
            "images/4.png",
            f"{'x' * 201},,,,,",
            "quarantine",
            "label that cannot",
        ),
        "an unknown split": ("images/5.png", "0,holdout,,,,", "quarantine", "unknown split"),
        "a split with escape": ("images/6.png", "0,\x1b[2J,,,,", "quarantine", "unknown split"),
        "a time that is none": ("images/7.png", "0,,,yesterday,,", "quarantine", "unreadable time"),
        "a time in the year 99999": (
            "images/8.png",
            "0,,,99999-01-01T00:00:00+14:00,,",
            "quarantine",
            "unreadable time",
        ),
        "a mask that climbs": ("images/9.png", "0,,,,../outside.png,", "quarantine", OUT),
        "a mask that is no file": ("images/10.png", "0,,,,none.png,", "quarantine", "unreadable"),
        "a mask that is a table": ("images/11.png", "0,,,,list.csv,", "quarantine", "not an image"),
        "a group with escape": ("images/12.png", "0,,\x1b[2J,,,", "kept", ""),
        "a text of 100 kB": ("images/13.png", f"0,,,,,{'long ' * 20_000}", "kept", ""),
        "a text with markup": ("images/14.png", "0,,,,,<script>alert(1)</script>", "kept", ""),
        "a formula as text": ("images/15.png", "0,,,,,=cmd|'calc'!A0", "kept", ""),
        "a path with dots": ("./images//16.png", "0,,,,,", "kept", ""),
        "a quoted line break": ("images/17.png", '0,,,,,"two\nlines"', "kept", ""),
    }
    found = [
        Case(f"row of {what}", "table rows", _row(path, cells, why), expects, why)
        for what, (path, cells, expects, why) in rows.items()
    ]
    lines = {
        "short row": (b"images/20.png", "malformed row"),
        "long row": (b"images/21.png,0,,,,,,,,", "malformed row"),
        "row of no path": (b" ,0,,,,,", "no path"),
    }
    found += [
        Case(what, "table rows", _line(line), "quarantine", why)
        for what, (line, why) in lines.items()
    ]
    found += [
        Case("row of bytes that are no text", "table rows", _bytes_row, "quarantine", "unreadable"),
        Case("row of a pipe", "table rows", _pipe_row, "quarantine", "not a regular file"),
        Case("row of a link out", "table rows", _link_row, "quarantine", OUT),
        Case("row of a folder link out", "table rows", _folder_link_row, "quarantine", OUT),
        Case("row listed twice", "table rows", _twice("0", "0"), "quarantine", "listed more", 1),
        Case("row of two labels", "table rows", _twice("0", "1"), "quarantine", "label conflict"),
        Case("label that is a formula", "table rows", _formula_labels, "kept", "", rows=4),
        Case("label that is markup", "table rows", _markup_labels, "kept", "", rows=4),
    ]
    return found


def _append(root: Path, line: bytes) -> int:
    """Add a line to the table; return its number as a reader of CSV counts."""
    path = root / "list.csv"
    data = path.read_bytes() + line + b"\n"
    path.write_bytes(data)
    return data.count(b"\n")


def _picture_for(root: Path, path: str) -> None:
    clean = path.removeprefix("./").replace("//", "/")
    if clean.startswith("images/") and clean[7:-4].isdigit():
        (root / clean).write_bytes(png(100 + int(clean[7:-4])))


def _row(path: str, cells: str, why: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        _picture_for(root, path)
        number = _append(root, f"{path},{cells}".encode())
        if why == OUT:
            return printable(f"row {number}: {path[:200]}")
        return printable(clean_path(path))

    return build


def _line(line: bytes) -> Callable[[Path], str]:
    return lambda root: f"row {_append(root, line)}"


def _bytes_row(root: Path) -> str:
    _append(root, b"images/\xff\xfe.png,0,,,,,")
    return "images/\\xff\\xfe.png"


def _pipe_row(root: Path) -> str:
    os.mkfifo(root / "images" / "pipe.png")
    _append(root, b"images/pipe.png,0,,,,,")
    return "images/pipe.png"


def _link_row(root: Path) -> str:
    (root / "images" / "link.png").symlink_to("../../outside.png")
    _append(root, b"images/link.png,0,,,,,")
    return "images/link.png"


def _folder_link_row(root: Path) -> str:
    (root / "up").symlink_to("..")
    _append(root, b"up/outside.png,0,,,,,")
    return "up/outside.png"


def _twice(first: str, second: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        name = f"images/{50 + int(second)}.png"
        _picture_for(root, name)
        _append(root, f"{name},{first},,,,,".encode())
        _append(root, f"{name},{second},,,,,".encode())
        return name

    return build


def _labels(label: str, start: int) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        for number in range(start, start + 4):
            _picture_for(root, f"images/{number}.png")
            _append(root, f"images/{number}.png,{label},,,,,".encode())
        return f"images/{start}.png"

    return build


_formula_labels = _labels("=HYPERLINK(1)", 60)
_markup_labels = _labels("<img src=x onerror=alert(1)>", 70)


def _json_rows() -> list[Case]:
    rows: dict[str, tuple[str, str, str]] = {
        "no json": ("{path: 'a'}", "", "malformed row"),
        "a list": ("[1, 2]", "", "malformed row"),
        "a number": ("7", "", "malformed row"),
        "a deep list": ("[" * 100_000, "", "malformed row"),
        "a deep object": ('{"a":' * 100_000, "", "malformed row"),
        "a number of 5000 digits": ('{"file_name": ' + "9" * 5_000 + "}", "", "malformed row"),
        "a path that is a list": ('{"file_name": ["a"], "label": "0"}', "", "malformed row"),
        "a label that is an object": ('{"file_name": "a", "label": {}}', "", "malformed row"),
        "no path": ('{"label": "0"}', "", "no path"),
        "a path of null": ('{"file_name": null, "label": "0"}', "", "no path"),
        "a label of NaN": ('{"file_name": "n.png", "label": NaN}', "n.png", "no label"),
        "a path that climbs": (
            '{"file_name": "../outside.png", "label": "0"}',
            "row {}: ../outside.png",
            OUT,
        ),
        "two paths": (
            '{"file_name": "images/000.png", "file_name": "../x", "label": "0"}',
            "row {}: ../x",
            OUT,
        ),
        "half a character": (
            '{"file_name": "\\ud800.png", "label": "0"}',
            "\\ud800.png",
            "unreadable",
        ),
        "a label of half a character": (
            '{"file_name": "h.png", "label": "\\ud800"}',
            "h.png",
            "label that cannot",
        ),
        "a zero byte": ('{"file_name": "a\\u0000b", "label": "0"}', "row {}: a\\x00b", OUT),
        "a prototype": ('{"__proto__": {"label": "0"}}', "", "no path"),
        "cut off": ('{"file_name": "images/0', "", "malformed row"),
    }
    return [
        Case(f"json row of {what}", "json rows", _json_row(line, name), "quarantine", why)
        for what, (line, name, why) in rows.items()
    ]


def _json_row(line: str, name: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        path = root / "metadata.jsonl"
        text = path.read_text().rstrip("\n") + "\n" + line + "\n"
        path.write_text(text)
        return (name or "row {}").format(text.count("\n"))

    return build


def _whole_csv() -> list[Case]:
    table = "path,label\nimages/000.png,0\nimages/001.png,1\n"
    many = b"".join(b"images/%d.png,%d\n" % (i, i % 3) for i in range(1_100))
    wholes: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "no column 'path'"),
        "its header alone": (_HEAD, "no usable item"),
        "no header": (b"images/000.png,0\nimages/001.png,1\n", "no column 'path'"),
        "in UTF-16": (table.encode("utf-16"), "no column 'path'"),
        "of zero bytes": (bytes(5_000), "no column 'path'"),
        "an image": (png(0), "list.csv"),
        "with a quote left open": (table.encode() + b'"images/002.png,1\n', "line 4"),
        "with two columns of paths": (b"path,Path,label\na,b,c\n", "2 columns are named 'path'"),
        "with a header of escapes": (b"\x1b[2J,\x1b]0;x\x07\na,b\n", "no column 'path'"),
        "with 3000 columns": (b"path,label," + b"x," * 3_000 + b"\n", "3003 columns"),
        "with a line of 2 MB": (table.encode() + b"x" * 2_000_000, "characters"),
        "with a cell of 300 kB": (table.encode() + b'"' + b"x" * 300_000 + b'",1\n', "line 4"),
        "with more rows than the limit": (_HEAD + many, "more than 1000"),
        "with more labels than the limit": (
            _HEAD + b"".join(b"%d.png,c%d\n" % (i, i) for i in range(30)),
            "more than 20",
        ),
        "with one label": (_HEAD + b"images/000.png,0\n", "only the class '0'"),
        "with rows that all climb": (_HEAD + b"../a.png,0\n/b.png,1\n", "no usable item"),
    }
    found = [
        Case(f"table {what}", "csv", _write("list.csv", data), "error", says)
        for what, (data, says) in wholes.items()
    ]
    return [
        *found,
        Case("table of 1 GiB", "csv", _sparse_table, "error", "at most"),
        Case("table that is a pipe", "csv", _pipe_table, "error", "no table"),
        Case("table that is a folder", "csv", _folder_table, "error", "no table"),
        Case("table with a byte order mark", "csv", _marked, "kept", rows=0),
        Case("table with lines of the old Mac", "csv", _mac, "kept", rows=0),
    ]


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).write_bytes(data)

    return build


def _sparse_table(root: Path) -> None:
    with (root / "list.csv").open("ab") as file:
        file.truncate((1 << 30) + 1)


def _pipe_table(root: Path) -> None:
    (root / "list.csv").unlink()
    os.mkfifo(root / "list.csv")


def _folder_table(root: Path) -> None:
    (root / "list.csv").unlink()
    (root / "list.csv").mkdir()


def _marked(root: Path) -> None:
    path = root / "list.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _mac(root: Path) -> None:
    path = root / "list.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))


def _whole_parquet() -> list[Case]:
    paths, labels = ["images/000.png", "images/001.png"], ["0", "1"]
    tables: dict[str, tuple[dict[str, object], str]] = {
        "lists as paths": ({"path": [["a"], ["b"]], "label": labels}, "column of path"),
        "structs as labels": ({"path": paths, "label": [{"a": 1}, {"a": 2}]}, "column of label"),
        "bytes as paths": ({"path": [b"a", b"b"], "label": labels}, "column of path"),
        "no labels": ({"path": paths}, "no column 'label'"),
        "no rows": (
            {"path": pa.array([], pa.string()), "label": pa.array([], pa.string())},
            "no usable",
        ),
        "nulls": ({"path": [None, None], "label": labels}, "no usable item"),
        "rows beyond the limit": (
            {"path": ["images/000.png"] * 2_000, "label": ["0", "1"] * 1_000},
            "more than 1000",
        ),
        "100000 rows of one long text": (
            {"path": _REPEATED, "label": ["0", "1"] * 50_000},
            "more than 1000",
        ),
    }
    found = [
        Case(f"parquet of {what}", "parquet", _parquet(columns), "error", says)
        for what, (columns, says) in tables.items()
    ]
    damages: dict[str, Callable[[bytes], bytes]] = {
        "cut in half": lambda data: data[: len(data) // 2],
        "without its end": lambda data: data[:-4],
        "a footer of 4 GiB": lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
        "a footer of zeros": lambda data: data[:-200] + bytes(192) + data[-8:],
        "its magic alone": lambda data: b"PAR1PAR1",
        "nothing": lambda data: b"",
        "a footer that is encrypted": lambda data: data[:-4] + b"PARE",
        "a footer of flipped bits": lambda data: (
            data[:-120] + bytes(one ^ 0x5A for one in data[-120:-8]) + data[-8:]
        ),
    }
    found += [
        Case(f"parquet of {what}", "parquet", damaged("list.parquet", change), "error", "list")
        for what, change in damages.items()
    ]
    pages = Case(
        "parquet of pages of zeros",
        "parquet",
        damaged("list.parquet", lambda data: b"PAR1" + bytes(400) + data[404:]),
        "error",
        "damaged Parquet",
    )
    return [*found, pages]


def _parquet(columns: dict[str, object]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        pq.write_table(pa.table(columns), root / "list.parquet")

    return build


def damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).unlink()  # a file that is mapped into memory is replaced, not rewritten
        (root / name).write_bytes(change(data))

    return build
