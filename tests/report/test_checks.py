from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report.fake_verdict import write_all

from pipeline.checks.findings import CHECKS, Example, Finding, write_findings
from pipeline.data.store import make_samples, read_ids
from pipeline.data.store_writer import write_store
from pipeline.errors import StageError
from pipeline.params import ReportParams
from pipeline.report import checks as module
from pipeline.report.checks import read_shown
from pipeline.stages.report import run
from pipeline.tracking.tracker import NullTracker

HOSTILE = '<img src=x onerror="alert(1)">\u202e'


def prepared(root: Path) -> tuple[Path, tuple[str, ...]]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    samples = make_samples(images, np.zeros(3, np.int64), ["train", "test", "pool"], "real")
    write_store(root / "prepare" / "dataset", samples, ("a",), 8, "L")
    return root / "prepare", samples.ids


def finding(*examples: Example, check: str = "label_issues") -> Finding:
    return Finding(check, "warning", 1_234, "1,234 found", "kept", examples)


def test_pictures_come_from_the_store_by_id_and_what_is_set_aside_has_none(tmp_path: Path) -> None:
    folder, ids = prepared(tmp_path)
    write_findings(
        folder / CHECKS,
        [finding(Example("a.png", ids[0], "b", ids[1]), Example("c.png", "0" * 64, "d"))],
    )
    shown = read_shown(folder)
    assert shown is not None
    ((first, second),) = [one.examples for one in shown]
    assert first.picture.startswith("data:image/png;base64,")
    assert first.other.startswith("data:image/png;base64,")
    assert first.picture != first.other
    assert (second.picture, second.other) == ("", "")


def test_without_a_file_nobody_checked_and_an_empty_one_is_all_well(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path)
    assert read_shown(folder) is None
    write_findings(folder / CHECKS, [])
    assert read_shown(folder) == ()
    (folder / CHECKS).write_text("{}")
    with pytest.raises(StageError, match="findings not readable"):
        read_shown(folder)


def test_pictures_beyond_the_budget_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = prepared(tmp_path)
    write_findings(folder / CHECKS, [finding(*[Example("a", one, "b") for one in ids])])
    shown = read_shown(folder)
    assert shown is not None
    sizes = [len(one.picture) for one in shown[0].examples]
    assert all(sizes)
    monkeypatch.setattr(module, "EXAMPLE_BYTES", sizes[0] + sizes[1])
    shown = read_shown(folder)
    assert shown is not None
    assert [bool(one.picture) for one in shown[0].examples] == [True, True, False]


def test_long_names_keep_their_end(tmp_path: Path) -> None:
    folder, ids = prepared(tmp_path)
    write_findings(folder / CHECKS, [finding(Example("x" * 500 + "7.png", ids[0], ""))])
    shown = read_shown(folder)
    assert shown is not None
    assert len(shown[0].examples[0].name) == 80
    assert shown[0].examples[0].name.endswith("7.png")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_the_section_with_hostile_names_escaped(tmp_path: Path) -> None:
    folders = write_all(tmp_path)
    run(ReportParams(), folders, tmp_path / "plain", NullTracker())
    assert 'id="checks"' not in (tmp_path / "plain" / "index.html").read_text(encoding="utf-8")
    prepare = folders["prepare"]
    identity = read_ids(prepare / "dataset", ("train",))[0]
    write_findings(
        prepare / CHECKS,
        [
            Finding("x", "warning", 1, HOSTILE, HOSTILE, (Example(HOSTILE, identity, HOSTILE),)),
            finding(check="y"),
        ],
    )
    run(ReportParams(), folders, tmp_path / "report", NullTracker())
    tags = Tags((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert "1,234" in tags.text
    assert HOSTILE in tags.text
    assert not any("onerror" in attributes for _, attributes in tags.found)
    sources = [attributes["src"] or "" for tag, attributes in tags.found if tag == "img"]
    assert all(source.startswith("data:") for source in sources)
    assert ("section", {"id": "checks"}) in tags.found
    assert HOSTILE in [attributes["alt"] for tag, attributes in tags.found if tag == "img"]


def test_a_checked_set_without_findings_says_so(tmp_path: Path) -> None:
    folders = write_all(tmp_path)
    write_findings(folders["prepare"] / CHECKS, [])
    run(ReportParams(), folders, tmp_path / "report", NullTracker())
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "The images were looked through, and nothing was found." in text
