import numpy as np
import pytest
from checks.sets import blobs, examined
from sklearn.datasets import load_digits

from pipeline.checks.descriptors import describe, histograms
from pipeline.checks.examined import Examined, Rows, Settings
from pipeline.checks.label_issues import LIKELY_WRONG, disputed, label_issues

COUNT = 300
WRONG = (3, 50, 120, 160, 222, 254, 280)


@pytest.fixture(scope="module")
def digits() -> Examined:
    loaded = load_digits()
    images = np.clip(loaded.images[:COUNT] * 16, 0, 255).astype(np.uint8)[..., None]
    labels = loaded.target[:COUNT].astype(np.int64).copy()
    labels[list(WRONG)] = (labels[list(WRONG)] + 4) % 10
    splits = ["test" if row == 280 else "train" for row in range(COUNT)]
    return examined(images, labels.tolist(), splits=splits)


def test_planted_wrong_labels_are_found_and_none_is_dropped_unasked(digits: Examined) -> None:
    steps: list[tuple[str, int, int]] = []
    rows = np.arange(COUNT)
    (finding,), aside = label_issues(
        digits, rows, rows, Settings(), lambda *step: steps.append(step)
    )
    names = {one.name for one in finding.examples}
    planted = {f"{row}.png" for row in WRONG}
    assert len(names & planted) >= 5
    assert len(names - planted) <= 3
    assert aside == []
    assert steps[-1] == ("cross-validate labels", 5, 5)


def test_they_are_set_aside_on_request_but_never_from_a_given_test_split(
    digits: Examined,
) -> None:
    rows = np.arange(COUNT)
    settings = Settings(drop_label_issues=True)
    (finding,), aside = label_issues(digits, rows, rows, settings, lambda *step: None)
    assert {one.reason for one in aside} == {LIKELY_WRONG}
    assert "280.png" in {one.name for one in finding.examples}
    assert 280 not in {one.row for one in aside}
    assert {one.row for one in aside} & set(WRONG)
    again = label_issues(digits, rows, rows, settings, lambda *step: None)
    assert again == ([finding], aside)


def test_above_the_limit_a_sample_is_looked_through_and_said_so(digits: Examined) -> None:
    rows = np.arange(COUNT)
    settings = Settings(label_issue_rows=200)
    findings, _ = label_issues(digits, rows, rows, settings, lambda *step: None)
    assert findings[0].check == "label_issues_sampled"
    assert (findings[0].severity, findings[0].count) == ("info", COUNT - 200)


def test_one_class_and_thin_classes_are_left_alone() -> None:
    rows = np.arange(30)
    for labels in ([0] * 30, [0] * 22 + [1] * 8):
        one = examined(blobs(30), labels)
        assert label_issues(one, rows, rows, Settings(), lambda *step: None) == ([], [])


def test_units_keep_a_wrong_label_from_vouching_for_itself(digits: Examined) -> None:
    # Twenty copies of one picture under the wrong label teach the classifier that label.
    first = np.flatnonzero(digits.labels[:100] == 0)[0]
    images = np.concatenate((digits.images(np.arange(COUNT)), *[digits.images([first])] * 20))
    one = examined(images, [*digits.labels.tolist(), *([1] * 20)])
    rows = np.arange(COUNT + 20)
    units = np.where(rows >= COUNT, first, rows)
    copies = {f"{row}.png" for row in range(COUNT, COUNT + 20)}

    def doubted(apart: Rows) -> set[str]:
        found, _ = label_issues(one, apart, rows, Settings(), lambda *step: None)
        return {example.name for finding in found for example in finding.examples} & copies

    assert not doubted(rows)
    assert doubted(units)


def test_a_label_is_disputed_at_odds_of_ten_to_one() -> None:
    probabilities = np.array([[0.05, 0.95], [0.3, 0.7], [0.97, 0.03], [0.01, 0.99]])
    np.testing.assert_array_equal(disputed(np.array([0, 0, 0, 0]), probabilities), [3, 0])


def test_histograms_see_the_direction_of_stripes() -> None:
    across = np.tile(np.arange(32) // 2 % 2 * 200.0, (32, 1)).astype(np.float32)
    both = histograms(np.stack((across, across.T)))
    assert both.shape == (2, 324)
    blocks = both.reshape(2, 9, 4, 9).sum(axis=(1, 2))
    assert blocks[0].argmax() == 0  # gradients along x
    assert blocks[1].argmax() == 4  # and along y, at the fifth of nine orientations


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 3), (64, 1)])
def test_descriptors_have_one_size_for_all_images(side: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, channels), dtype=np.uint8)
    pixels, slopes = describe(images)
    assert pixels.shape == (3, 256 * channels)
    assert slopes.shape == (3, 324)
    assert np.isfinite(slopes).all()
