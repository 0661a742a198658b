import math
from pathlib import Path

import pytest
from fake_stages import Fake, write_stages
from report.fake_verdict import write_controls, write_findings

from pipeline.data.limits import MOST_ROWS
from pipeline.downstream import arms
from pipeline.errors import StageError
from pipeline.folders import Manifest, read_manifest, write_bytes
from pipeline.report.findings import (
    BaseImages,
    Check,
    Pretraining,
    Training,
    base_caution,
    check_lineage,
    copy_limit,
    need_manifest,
    plain_params,
    read_base_images,
    read_checks,
    read_controls,
    read_record,
    read_table,
)
from pipeline.report.verdict import (
    OF_BASE,
    POOL_ARMS,
    Verdict,
    ordered_arms,
    thinnest_first,
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
    assert manifests["pretrain"].inputs == {
        f"prepare/{name}": manifests["prepare"].files[name]
        for name in ("unlabelled_ids.txt", "settings.json")
    }
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


def test_what_was_not_measured_is_nan_and_its_row_stays(tmp_path: Path) -> None:
    folders = write_stages(tmp_path, Fake(copy_shares=(None, 0.5, None, None, None)))
    path = folders["train"] / "checks.csv"
    checks = read_checks(path)
    assert [one.step for one in checks] == [500, 1000, 1500, 2000, 2500]
    assert math.isnan(checks[0].copy_share)
    assert math.isnan(checks[0].quality)
    assert checks[0].heldout_loss > checks[0].training_loss > 0
    assert (checks[1].copy_share, checks[1].quality) == (0.5, 0.3625)
    # Without keep_gaps a row with a gap is left out, as in curve.csv.
    assert read_table(path, ("step", "copy_share")) == [(1000.0, 0.5)]
    gaps = read_table(path, ("step", "copy_share"), keep_gaps=True)
    assert [math.isnan(share) for _, share in gaps] == [True, False, True, True, True]


@pytest.mark.parametrize(
    "row", ["1,0.1,0.2", "1,0.1,0.2,0.3,much", ",0.1,0.2,0.3,0.4", "inf,0.1,0.2,0.3,0.4"]
)
def test_damaged_checks_name_the_file_and_the_stage(tmp_path: Path, row: str) -> None:
    path = tmp_path / "train" / "checks.csv"
    write_bytes(path, f"step,training_loss,heldout_loss,copy_share,quality\n{row}\n".encode())
    with pytest.raises(StageError, match=r"checks.csv: not readable .* run the stage `train`"):
        read_checks(path)


def test_checks_without_rows_are_none(tmp_path: Path) -> None:
    path = tmp_path / "train" / "checks.csv"
    write_bytes(path, b"step,training_loss,heldout_loss,copy_share,quality\n2,1,,0,\n")
    (check,) = read_checks(path)
    assert (check.step, check.training_loss, check.copy_share) == (2, 1.0, 0.0)
    assert isinstance(check, Check)
    write_bytes(path, b"step,training_loss,heldout_loss,copy_share,quality\n")
    assert read_checks(path) == []


def test_images_that_the_base_saw_are_counted(tmp_path: Path) -> None:
    def seen(root: Path, **changes) -> BaseImages | None:
        folders = write_stages(root, Fake(**changes))
        return read_base_images(folders["pretrain"], folders["train"])

    assert seen(tmp_path / "a") is None
    assert seen(tmp_path / "b", base="hub", base_beyond=None) is None
    assert seen(tmp_path / "c", base="pool", base_beyond=40) == BaseImages(52, 40)
    assert seen(tmp_path / "d", base="run", base_beyond=0) == BaseImages(12, 0)
    (tmp_path / "d" / "train" / "training_ids.txt").unlink()
    with pytest.raises(StageError, match=r"training_ids.txt: missing; run the stage `train`"):
        read_base_images(tmp_path / "d" / "pretrain", tmp_path / "d" / "train")


OF_POOL = ["real_augmented", "pseudo_labels", "pseudo_labels_soft", "retrieval"]
HELD_OUT = "By their pixels none of them is a test or validation image."
THROUGH = (
    "the gain is what that knowledge brings through the generator, not what generating brings by "
    "itself."
)


@pytest.fixture
def caution(tmp_path: Path):
    """Return `caution(base, beyond, baselines, trained_here, side_px, mode)`."""

    def told(base, beyond, baselines, here=False, side_px=8, mode="L") -> str:
        folders = write_findings(tmp_path, baselines=baselines)
        verdict = read_record(folders["evaluate"] / "verdict.json", Verdict)
        images = 0 if beyond is None else 12 + beyond
        pretraining = Pretraining(
            base=base,
            source="somewhere",
            base_digest="b" * 64,
            images=images if here else 0,
            steps=0,
            parameters=1,
            heldout_loss=None,
        )
        base_images = None if beyond is None else BaseImages(images, beyond)
        return base_caution(pretraining, base_images, verdict, side_px, mode)

    return told


def test_a_base_from_elsewhere_is_knowledge_that_no_baseline_had(caution) -> None:
    assert caution("run", 1400, ["real"]) == (
        f"The base learned from 1,400 images beyond the training images. {HELD_OUT} Its images and "
        f"labels are knowledge that no baseline had: {THROUGH}"
    )
    # Whether the pool holds some of its images is not known.
    assert (
        "Its images and labels are knowledge that no baseline had (but for images that stand in "
        f"the pool too): {THROUGH}"
    ) in caution("run", 1400, OF_POOL)
    # Another run's base of a pool had no labels; this run's own pool it is not.
    assert f"Its images are knowledge that no baseline had: {THROUGH}" in caution("pool", 9, [])
    assert caution("hub", None, ["real"]) == (
        "Which images the base has seen is not known. Test images may be among them; if they are, "
        "the gain says nothing. Its images and labels are knowledge that no baseline had: "
        f"{THROUGH}"
    )
    assert caution("run", 0, ["real"]) == caution("none", None, ["real"]) == ""


def test_a_base_whose_images_a_baseline_had(caution) -> None:
    told = (
        f"The base learned from 1,400 images beyond the training images. {HELD_OUT} The baseline "
        "base_images saw 1,400 of them, with their labels: the gain is what the generator brings "
        "beyond these."
    )
    assert caution("run", 1400, ["real", "base_images"]) == told
    # It started from a base itself, or not all classes are shared.
    assert caution("run", 1401, ["real", "base_images"]) == (
        f"{told.replace('1,400 images beyond', '1,401 images beyond')} The others are knowledge "
        "that no baseline had."
    )


@pytest.mark.parametrize(
    ("baselines", "named"),
    [
        (OF_POOL, "pseudo-labels, soft pseudo-labels, retrieval"),
        (["real", "retrieval"], "retrieval"),
    ],
)
def test_a_base_of_the_pool_with_arms_of_the_pool(caution, baselines, named) -> None:
    assert caution("pool", 1400, baselines, here=True) == (
        "The base learned from 1,400 unlabelled images that only the arms of the pool saw too "
        f"({named}), so part of any gain over the others may come from the pool rather than from "
        f"synthesis. {HELD_OUT}"
    )


def test_a_base_of_the_pool_without_arms_of_the_pool(caution) -> None:
    for beyond in (1400, 1_000_000):
        assert caution("pool", beyond, ["real", "smote"], here=True) == (
            f"The base learned from {beyond:,} unlabelled images that no baseline saw, so part of "
            f"any gain may come from the pool rather than from synthesis. {HELD_OUT}"
        )


@pytest.mark.parametrize(
    ("side_px", "mode", "most"), [(8, "L", MOST_ROWS), (128, "RGB", 5461), (128, "L", 16384)]
)
def test_a_pool_of_which_its_arms_see_a_part(caution, side_px, mode, most) -> None:
    told = caution("pool", most + 1, OF_POOL, True, side_px, mode)
    assert told == (
        f"The base learned from {most + 1:,} unlabelled images. The baselines of the pool "
        "(pseudo-labels, soft pseudo-labels, retrieval) looked at no more than "
        f"{most:,} of them, the others at none, so part of any gain may come from the pool rather "
        f"than from synthesis. {HELD_OUT}"
    )
    assert "saw too" in caution("pool", most, OF_POOL, True, side_px, mode)


def test_arms_of_the_pool_and_of_the_base_are_those_of_the_comparison() -> None:
    assert tuple(POOL_ARMS) == arms.OF_POOL
    assert OF_BASE == arms.OF_BASE


@pytest.mark.parametrize("params", [{}, {"copy_limit": True}, {"copy_limit": 2}])
def test_a_manifest_without_the_copy_limit_is_refused(params: dict) -> None:
    assert copy_limit(Manifest("train", "key", {"copy_limit": 0.02}, {}, {}, "digest")) == 0.02
    with pytest.raises(StageError, match="no copy_limit; run the stage `train` again"):
        copy_limit(Manifest("train", "key", params, {}, {}, "digest"))


def test_a_verdict_is_read_with_all_that_it_says(tmp_path: Path) -> None:
    folders = write_findings(tmp_path, regressed=(0,), looks=(2, 4))
    found = read_record(folders["evaluate"] / "verdict.json", Verdict)
    assert found.interval_points == (1.2, 5.0)
    assert (found.confidence, found.level) == (0.95, 0.975)
    assert [one.seeds for one in found.looks] == [2, 4]
    assert [one.name for one in found.per_class if one.regressed] == ["digit 0"]
    assert found.learning_curve is not None
    assert found.learning_curve.worth_images == 140
    focal = found.arm("focal")
    assert focal is not None
    assert focal.settings == {"learning_rate": 0.003, "gamma": 2.0}
    assert found.arm("no such arm") is None


def test_a_role_or_decision_of_another_version_is_refused(tmp_path: Path) -> None:
    folders = write_findings(tmp_path)
    path = folders["evaluate"] / "verdict.json"
    text = path.read_bytes()
    write_bytes(path, text.replace(b'"use"', b'"maybe"', 1))
    with pytest.raises(StageError, match=r"verdict.json: damaged \(decision: Input should be"):
        read_record(path, Verdict)
    write_bytes(path, text.replace(b'"role": "synthetic"', b'"role": "mixed"', 1))
    with pytest.raises(StageError, match=r"damaged \(arms.*role: .* run the stage `evaluate`"):
        read_record(path, Verdict)


def test_the_best_arms_lead_their_groups_and_the_others_follow_by_gain(tmp_path: Path) -> None:
    folders = write_findings(tmp_path)
    found = read_record(folders["evaluate"] / "verdict.json", Verdict)
    # A rival with a larger gain on test does not take the place of the arm picked on validation.
    arms = [
        arm.model_copy(update={"gain_points": 9.0}) if arm.name == "mixed_25" else arm
        for arm in found.arms
    ]
    order = [arm.name for arm in ordered_arms(found.model_copy(update={"arms": arms}))]
    assert order[:3] == ["mixed_50", "mixed_25", "mixed_light_weight_50"]
    assert order[5:7] == ["real_augmented", "real_augmented_strong"]
    assert order[-1] == "synthetic_only"
    assert len(order) == len(found.arms)
    assert [one.training_images for one in thinnest_first(found)] == [2, 4, 6]


def test_controls_may_be_absent_but_not_damaged(tmp_path: Path) -> None:
    assert read_controls(tmp_path / "controls" / "controls.json") == []
    path = write_controls(tmp_path)
    rows = read_controls(path)
    assert [one.kind for one in rows] == ["negative"] * 3 + ["positive"]
    assert all(one.as_expected for one in rows)
    write_bytes(path, b'{"rows": [{"name": "noise"}]}')
    with pytest.raises(StageError, match=r"controls.json: damaged \(rows.0.kind"):
        read_controls(path)
