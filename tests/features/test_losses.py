import math

import pytest
import torch
from torch.nn import functional

from pipeline.features.classifier import Batch, batch_loss
from pipeline.features.losses import class_weighted, focal, logit_adjusted

COUNTS = (90, 9, 1)
LABELS = torch.tensor([0, 1, 2, 2])


def logits() -> torch.Tensor:
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return drawn.requires_grad_()


def plain(given: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(given, LABELS, reduction="none")


def test_class_weights_are_the_inverse_counts_with_mean_one_over_the_rows() -> None:
    loss = class_weighted(COUNTS)
    weights = loss(torch.zeros(3, 3), torch.arange(3)) / math.log(3)
    torch.testing.assert_close(weights, torch.tensor([100 / 270, 100 / 27, 100 / 3]))
    assert float((weights * torch.tensor(COUNTS)).sum() / 100) == pytest.approx(1)
    torch.testing.assert_close(class_weighted((5, 5, 5))(logits(), LABELS), plain(logits()))


def test_a_class_without_rows_weighs_nothing() -> None:
    found = class_weighted((10, 30, 0))(torch.zeros(3, 3), torch.arange(3)) / math.log(3)
    torch.testing.assert_close(found, torch.tensor([2.0, 2 / 3, 0.0]))


def test_logit_adjustment_is_the_pairwise_sum_of_the_paper() -> None:
    tau, given = 0.7, logits().detach()
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    expected = []
    for row, y in zip(given, LABELS.tolist(), strict=True):
        others = [k for k in range(3) if k != y]
        terms = [(prior[k] / prior[y]) ** tau * torch.exp(row[k] - row[y]) for k in others]
        expected.append(torch.log1p(sum(terms)))
    found = logit_adjusted(COUNTS, tau)(given, LABELS)
    torch.testing.assert_close(found, torch.stack(expected))


def test_no_adjustment_where_the_counts_are_equal_or_tau_is_zero() -> None:
    torch.testing.assert_close(logit_adjusted((4, 4, 4), 1.0)(logits(), LABELS), plain(logits()))
    torch.testing.assert_close(logit_adjusted(COUNTS, 0.0)(logits(), LABELS), plain(logits()))


def test_a_class_without_rows_has_a_finite_adjustment() -> None:
    assert logit_adjusted((10, 3, 0), 1.0)(logits(), LABELS).isfinite().all()


def test_focal_loss_is_its_formula() -> None:
    given = logits().detach()
    p = given.softmax(1)[torch.arange(4), LABELS]
    torch.testing.assert_close(focal(2.0)(given, LABELS), -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(focal(0.0)(given, LABELS), plain(given))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_of_a_row_that_is_surely_right_has_a_finite_slope(gamma: float) -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    focal(gamma)(sure, torch.tensor([0])).sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    assert float(sure.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("counts", [(), (0, 0), (3, -1)])
def test_counts_of_nothing_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="training rows of each class"):
        class_weighted(counts)
    with pytest.raises(ValueError, match="training rows of each class"):
        logit_adjusted(counts)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_strengths_below_zero_or_not_finite_are_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="tau is"):
        logit_adjusted(COUNTS, strength)
    with pytest.raises(ValueError, match="gamma is"):
        focal(strength)


def test_mixed_rows_have_the_weighted_loss_of_both_labels() -> None:
    given, other = logits(), torch.tensor([1, 1, 0, 2])
    mix = torch.tensor([1.0, 0.25, 0.0, 0.5])
    found = batch_loss(given, Batch(torch.zeros(0), LABELS, other, mix))
    soft = mix[:, None] * functional.one_hot(LABELS, 3) + (1 - mix)[:, None] * (
        functional.one_hot(other, 3)
    )
    torch.testing.assert_close(found, functional.cross_entropy(given, soft))


def test_weights_scale_rows_against_each_other() -> None:
    given, images = logits(), torch.zeros(0)
    rows = plain(given)
    weights = torch.tensor([1.0, 0.5, 0.0, 0.5])
    found = batch_loss(given, Batch(images, LABELS, weights=weights))
    torch.testing.assert_close(found, (rows[0] + 0.5 * rows[1] + 0.5 * rows[3]) / 2)
    tenfold = batch_loss(given, Batch(images, LABELS, weights=10 * weights))
    torch.testing.assert_close(found, tenfold)
    nothing = batch_loss(given, Batch(images, LABELS, weights=torch.zeros(4)))
    assert float(nothing.detach()) == 0


def test_a_given_loss_takes_the_place_of_cross_entropy() -> None:
    given = logits()
    found = batch_loss(given, Batch(torch.zeros(0), LABELS), focal(2.0))
    torch.testing.assert_close(found, focal(2.0)(given, LABELS).mean())


def test_probabilities_stand_in_the_place_of_labels() -> None:
    given = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    batch = Batch(torch.zeros(0), torch.zeros(2, dtype=torch.int64), targets=targets)
    each = -(targets * given.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(batch_loss(given, batch), each.mean())
    weighted = Batch(batch.images, batch.labels, weights=torch.tensor([3.0, 1.0]), targets=targets)
    torch.testing.assert_close(batch_loss(given, weighted), (3 * each[0] + each[1]) / 4)
    with pytest.raises(ValueError, match="does not take probabilities"):
        batch_loss(given, batch, focal(2.0))
