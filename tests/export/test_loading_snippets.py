"""The snippets of docs/export.md are those of the cards, and they run."""

import warnings
from pathlib import Path

import pytest

from pipeline.export.choices import LAYOUTS
from pipeline.export.exporting import export

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"


def snippet(text):
    """Return the last block of Python in a text."""
    return text.rpartition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cards_snippet_runs_and_stands_in_the_document(grey, tmp_path, layout, monkeypatch):
    for name, value in (("HF_HOME", str(tmp_path / "hf")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    export(grey, tmp_path / "out", layout)
    code = snippet((tmp_path / "out" / "README.md").read_text())
    assert code in DOCUMENT.read_text()
    values = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        exec(code.replace("path/to/this/folder", str(tmp_path / "out")), values)
        if layout == "webdataset":
            samples = list(values["train"])
            assert len(samples) == 14
            assert sum(facts["origin"] == "real" for _, _, facts in samples) == 9
        else:
            assert len(values["real"]) == 9
    if layout == "coco":
        assert len(values["labels"]) == 14
