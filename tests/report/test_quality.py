import json
from pathlib import Path
from typing import Any

import pytest
from fake_stages import Fake, finish, write_stages
from report.fake_verdict import write_findings

from pipeline.errors import StageError
from pipeline.folders import write_json
from pipeline.params import AssembleParams, Params, ReportParams
from pipeline.report.findings import read_record
from pipeline.report.quality import QualityRow, quality_lines
from pipeline.report.synthesis import Synthesis
from pipeline.stages.assemble import run as assemble
from pipeline.stages.report import run as report
from pipeline.tracking.tracker import NullTracker

REFUSAL = "frechet_distance: 6 real rows; it needs at least 20"


def row(**changes) -> dict[str, Any]:
    """A metric as the stage synthesize writes it."""
    return {
        "name": "kernel_distance",
        "label": "kernel distance, cubic",
        "encoder": "judge",
        "value": -0.01234,
        "low": -0.05,
        "high": 0.0251,
        "n_real": 120,
        "n_fake": 1200,
        "ceiling": 0.002,
        "ceiling_low": -0.03,
        "ceiling_high": 0.034,
        "better": "low",
        "refusal": None,
        **changes,
    }


def refused(**changes) -> dict[str, Any]:
    numbers = ("value", "low", "high", "ceiling", "ceiling_low", "ceiling_high")
    return row(**dict.fromkeys(numbers), refusal=REFUSAL, label="Fréchet distance", **changes)


def write(root: Path, quality: list[dict[str, Any]] | None) -> tuple[str, str]:
    """Write the fake stages with these rows; return the page and the data card."""
    folders = write_findings(root, Fake())
    path = folders["synthesize"] / "summary.json"
    summary = json.loads(path.read_text())
    if quality is not None:
        write_json(path, {**summary, "quality": quality})
        finish(folders["synthesize"], Params())
        finish(folders["evaluate"], Params())
    assemble(AssembleParams(), dict(folders), root / "assemble", NullTracker())
    folders["assemble"] = root / "assemble"
    report(ReportParams(), folders, root / "report", NullTracker())
    card = root / "assemble" / "dataset" / "README.md"
    return (root / "report" / "index.html").read_text(), card.read_text()


def line(**changes):
    (found,) = quality_lines([QualityRow.model_validate(row(**changes))])
    return found


def test_numbers_have_three_digits_and_a_true_minus() -> None:
    found = line()
    assert (found.value, found.interval) == ("\u22120.0123", "\u22120.05 to 0.0251")
    assert (found.ceiling, found.ceiling_interval) == ("0.002", "\u22120.03 to 0.034")
    assert (found.images, found.better, found.refusal) == ("1,200 against 120", "low", "")
    assert line(value=1351.2).value == "1,351"
    assert line(value=0.0).value == "0"
    assert line(better="middle").better == "near the ceiling"
    assert line(n_real=0).images == "1,200"


def test_a_known_ceiling_has_no_interval_and_a_refusal_no_number() -> None:
    assert line(ceiling=0.5, ceiling_low=None, ceiling_high=None).ceiling_interval == ""
    (found,) = quality_lines([QualityRow.model_validate(refused())])
    assert found.refusal == REFUSAL
    assert found.value == found.interval == found.ceiling == found.ceiling_interval == ""


def test_the_page_shows_values_beside_their_ceilings(tmp_path: Path) -> None:
    page, _ = write(tmp_path, [row(), refused(n_real=6, n_fake=6)])
    section = page.split('<section id="quality">')[1].split("</section>")[0]
    assert "<h2>Quality of the accepted images</h2>" in section
    assert (
        '<td class="n">\u22120.0123 <small>\u22120.05 to 0.0251</small></td>'
        '<td class="n">0.002 <small>\u22120.03 to 0.034</small></td>'
    ) in section
    assert f'<td colspan="2">{REFUSAL}</td>' in section
    assert section.count("<tr>") == 3
    assert '<li><a href="#quality">Quality</a></li>' in page
    assert page.index('id="training"') < page.index('id="quality"') < page.index('id="acceptance"')


def test_the_card_has_the_same_table(tmp_path: Path) -> None:
    _, card = write(tmp_path, [row(), refused(n_real=6, n_fake=6)])
    table = card.split("## Quality of the accepted images")[1].split("\n## ")[0]
    assert "| Metric (of) | Value | Ceiling | Images | Good is |" in table
    value, ceiling = (
        r"\u22120\.0123 \(\u22120\.05 to 0\.0251\)",
        r"0\.002 \(\u22120\.03 to 0\.034\)",
    )
    value, ceiling = (text.replace(r"\u2212", "\u2212") for text in (value, ceiling))
    assert (
        rf"| kernel distance, cubic \(judge\) | {value} | {ceiling} | 1,200 against 120 | low |"
        in table
    )
    assert (
        r"| frechet\_distance\: 6 real rows; it needs at least 20 |  | 6 against 6 | low |" in table
    )


@pytest.mark.parametrize("quality", [None, []])
def test_without_metrics_neither_speaks_of_them(tmp_path: Path, quality: list | None) -> None:
    page, card = write(tmp_path, quality)
    for text in (page, card):
        assert "Quality of the accepted images" not in text
        assert "#quality" not in text


def test_text_of_summaries_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | x](y)"
    page, card = write(tmp_path, [row(label=hostile, encoder=hostile), refused(encoder=hostile)])
    assert page.count("<script") == 1  # the page's own
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    body = card[card.index("\n---\n", 4) :]
    assert "<script" not in body
    assert "| x](y)" not in body


def test_a_damaged_row_names_the_file_and_the_key(tmp_path: Path) -> None:
    folders = write_stages(tmp_path, Fake())
    path = folders["synthesize"] / "summary.json"
    summary = json.loads(path.read_text())
    write_json(path, {**summary, "quality": [row(better="wide")]})
    with pytest.raises(StageError, match=r"summary.json: damaged \(quality.0.better: .*synthesize"):
        read_record(path, Synthesis)
