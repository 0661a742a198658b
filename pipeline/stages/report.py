"""Stage report: one self-contained HTML page of what all stages found."""

from pathlib import Path

from pipeline.curation.selection import REASONS
from pipeline.folders import write_bytes
from pipeline.params import ReportParams
from pipeline.report.findings import check_lineage, read_checks, read_findings, read_table
from pipeline.report.page import read_gallery, render
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

PAGE = "index.html"
_STEPS = 4  # of progress: findings, images, page, file


class ReportSummary(Summary):
    """What was written.

    Attributes:
        bytes: size of index.html.
    """

    bytes: int


@stage("report", ReportSummary)
def run(params: ReportParams, inputs: Inputs, out: Path, tracker: Tracker) -> ReportSummary:
    """Write `index.html`.

    Raises:
        StageError: the folders were not made from each other, a file of theirs is damaged, or the
            page would be larger than 5 MB.
    """

    def step(done: int) -> None:
        tracker.progress("report", done, _STEPS, "steps")

    step(0)
    # They are no stage: whoever ran them beside this run finds them on its page.
    controls = inputs["evaluate"].parent / "controls" / "controls.json"
    findings = read_findings({str(name): folder for name, folder in inputs.items()}, controls)
    check_lineage(findings.manifests)
    loss = read_table(inputs["train"] / "curve.csv", ("step", "loss"))
    checks = read_checks(inputs["train"] / "checks.csv")
    step(1)
    gallery = read_gallery(
        inputs["prepare"],
        inputs["synthesize"],
        findings,
        params.images_per_class,
        params.examples,
    )
    step(2)
    page = render(
        params.title,
        findings,
        gallery,
        {str(name): text for name, text in REASONS.items()},
        loss,
        checks,
    ).encode()
    step(3)
    write_bytes(out / PAGE, page)
    step(4)
    return ReportSummary(bytes=len(page))
