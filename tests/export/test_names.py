"""Names and cells that file systems and spreadsheets take as they are meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.names import cell, class_folders, one_line

names = st.lists(st.text(max_size=120), max_size=6, unique=True)


@given(names)
def test_folders_are_safe_and_told_apart(classes):
    folders = class_folders(classes)
    assert len({one.casefold() for one in folders}) == len(classes)
    for one in folders:
        assert one.isprintable()
        assert 0 < len(one.encode()) < 200
        assert not set(one) & set('<>:"/\\|?* ')
        assert one[0] not in ".-=+@"
        assert one[-1] not in ". "
        assert one.casefold() not in ("con", "nul", "unlabelled")


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("Cat", "cat"), ("Cat_0", "cat_1")),
        (("../..", "a/b", ""), ("_", "a_b", "class_2")),
        (("CON", "lpt1.x", "unlabelled"), ("CON_", "lpt1.x_", "unlabelled_2")),
        (("a", "A", "a_0"), ("a_0_", "A_1", "a_0")),
        (("katze\u202e", "\u732b"), ("katze_", "\u732b")),
    ],
)
def test_folders_of_some_names(classes, folders):
    assert class_folders(classes) == folders


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@A1", "\t=1", " =1", "|x", "%x", "\r=1"])
def test_a_formula_is_neutralised(text):
    assert cell(text).startswith("'")


def test_other_cells_stand_as_they_are():
    assert [cell(v) for v in ("cat", None, -0.5, 3, True, "a\nb")] == [
        "cat", "", "-0.5", "3", "1", "a b",
    ]  # fmt: skip
    assert one_line("a\x1b[31m\nb" * 100, 9) == "a [31m ba"
