from pathlib import Path

import pytest
from PIL import Image
from readers.fixtures import FORMATS, csv_manifest, folder
from readers.reading import LIMITS
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.errors import InputError
from pipeline.params import Columns, load_params
from pipeline.readers.checking import starting_params, understand
from pipeline.readers.read import read_source
from pipeline.readers.recognise import recognise


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", FORMATS)
def test_the_params_it_writes_read_the_same_images(name: str, tmp_path: Path) -> None:
    kind, write = FORMATS[name]
    path = write(tmp_path / "a set: #1 'x' \"y\"")
    found = understand(str(path), LIMITS, Columns())
    assert sum(sum(row.values()) for row in found.counts.values()) == 40
    assert (found.look.widths, found.look.heights) == ((8, 8), (8, 8))
    assert found.look.modes == {"L": 40}
    file = tmp_path / "mine.yaml"
    file.write_text(starting_params(found, Columns()))
    params = load_params(file).prepare
    assert params.source == kind
    assert read_source(params).names == found.source.names


def test_it_says_what_it_understood_and_what_is_wrong(tmp_path: Path) -> None:
    path = csv_manifest(tmp_path)
    with path.open("a") as file:
        file.write("images/[bold]a.png,\n../up.png,0\nnone.png,[red]rare[/red]\n,0\n")
    Image.new("RGB", (20, 30)).save(tmp_path / "images" / "000.png")
    said = run(path)
    for line in (
        "Format     manifest (the table list.csv)",
        "Images     41 in 5 classes",
        "Size       8 to 20 x 8 to 30 px",
        "Modes      L 39, RGB 1",
        "fewer than 3 images, too few to be split: [red]rare[/red]",
        "Set aside: 1 leads out of the folder",
        "  row 43: ../up.png: climbs out with ..",
        "  images/[bold]a.png: the label is blank",
        "Cannot be read: 1 unreadable",
        "  none.png: No such file or directory",
        "Next: the same with --write FILE",
    ):
        assert line in said


def test_it_writes_a_params_file_and_never_over_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "set")
    out = tmp_path / "mine.yaml"
    assert f"Next: replenish prepare --params {out}" in run(path, "--write", out)
    assert out.read_text().splitlines()[2:] == [
        "  source: folder  # one folder a class, 4 of them",
        f'  path: "{path}"',
    ]
    with pytest.raises(InputError, match="exists already"):
        run(path, "--write", out)


def test_columns_are_named_and_written(tmp_path: Path) -> None:
    path = csv_manifest(tmp_path)
    path.write_text(path.read_text().replace("path,label", "path,class: of"))
    out = tmp_path / "mine.yaml"
    run(path, "--column", "label=class: of", "--write", out)
    assert load_params(out).prepare.columns.label == "class: of"
    with pytest.raises(InputError, match="write FIELD=NAME, with a field of path, label"):
        run(path, "--column", "nonsense=x")


def test_what_cannot_be_used_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory; put the images there"):
        run(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no format that is known \(the folder holds nothing\)"):
        run(tmp_path)
    (tmp_path / "x\x1b[2J.bin").touch()
    with pytest.raises(InputError, match=r"holds x\\x1b\[2J.bin"):
        run(tmp_path)
    path = csv_manifest(tmp_path / "set")
    for image in (tmp_path / "set" / "images").iterdir():
        image.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"none of 40 images can be read \(images/000.png: not an"):
        run(path)


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "0" / "\x1b[2J\u202egnp.txt").touch()
    said = run(tmp_path)
    assert r"0/\x1b[2J\u202egnp.txt" in said
    assert "\x1b" not in said


def test_a_folder_that_holds_one_npz_is_that_file(tmp_path: Path) -> None:
    FORMATS["npz"][1](tmp_path / "set")
    assert recognise(str(tmp_path / "set")).path == str(tmp_path / "set" / "set.npz")


def test_the_hub_is_not_asked_to_recognise(tmp_path: Path) -> None:
    assert recognise("hub:owner/name").format == "huggingface"
    with pytest.raises(InputError, match="for a dataset on the hub write hub:owner/name"):
        recognise("owner/name")
