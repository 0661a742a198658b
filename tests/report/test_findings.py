from pathlib import Path

import pytest
from fake_stages import write_stages

from pipeline.errors import StageError
from pipeline.folders import Manifest, read_manifest, write_bytes
from pipeline.report.findings import (
    Training,
    Verdict,
    check_lineage,
    need_manifest,
    plain_params,
    read_record,
)


def test_a_missing_file_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"verdict.json: missing; run the stage `evaluate` again"):
        read_record(tmp_path / "evaluate" / "verdict.json", Verdict)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", r"damaged \(file: Invalid JSON"), (b"{}", r"damaged \(steps: Field required")],
)
def test_a_damaged_file_names_the_key(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "train" / "summary.json"
    write_bytes(path, text)
    with pytest.raises(StageError, match=message):
        read_record(path, Training)


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="unfinished; run the stage `train` again"):
        need_manifest(tmp_path / "train")


def test_lineage_that_fits_passes(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    manifests = {name: need_manifest(folder) for name, folder in folders.items()}
    check_lineage(manifests)
    assert manifests["evaluate"].inputs["synthesize"] == manifests["synthesize"].digest
    assert read_manifest(folders["train"]) == manifests["train"]


def test_nested_settings_are_spelt_out() -> None:
    params = {"seed": 1, "imbalance": {"min": 2, "max": 3}, "arms": ["real"]}
    manifest = Manifest("prepare", "key", params, {}, {}, "digest")
    assert plain_params(manifest) == [
        ("arms", ["real"]),
        ("imbalance.max", 3),
        ("imbalance.min", 2),
        ("seed", 1),
    ]
