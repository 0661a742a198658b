import numpy as np
import pytest
import torch

from pipeline.downstream.mixing import mix_rows
from pipeline.features.classifier import Batch, batch_loss

N, SIDE = 64, 12


def batch() -> Batch:
    values = torch.arange(N).float() / N
    return Batch(values[:, None, None, None].expand(N, 1, SIDE, SIDE).clone(), torch.arange(N))


def test_mixup_mixes_images_and_labels_by_the_same_weight() -> None:
    mixed = mix_rows(batch(), "mixup", 1.0, np.random.default_rng(0))
    assert mixed.mix is not None
    assert mixed.mixed_labels is not None
    wanted = (mixed.mix * mixed.labels + (1 - mixed.mix) * mixed.mixed_labels) / N
    torch.testing.assert_close(mixed.images, wanted[:, None, None, None].expand_as(mixed.images))
    assert 0.4 < mixed.mix.mean() < 0.6
    assert mixed.mix.std() > 0.2


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    mixed = mix_rows(batch(), "cutmix", 1.0, np.random.default_rng(0))
    assert mixed.mix is not None
    assert mixed.mixed_labels is not None
    own = mixed.images == (mixed.labels / N)[:, None, None, None]
    pasted = mixed.images == (mixed.mixed_labels / N)[:, None, None, None]
    assert (own | pasted).all()
    others = mixed.labels != mixed.mixed_labels
    share = own.float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(share[others], mixed.mix[others])
    for row in np.flatnonzero(others):
        places = torch.nonzero(~own[row, 0])
        if len(places):  # a rectangle: as many pixels as its corners span
            height, width = (places.max(0).values - places.min(0).values + 1).tolist()
            assert height * width == len(places)
    assert 0.3 < mixed.mix.mean() < 0.9


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_the_generator_decides(how) -> None:
    first, same, other = (
        mix_rows(batch(), how, 0.5, np.random.default_rng(seed)).images for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_probabilities_are_blended_as_labels_are(how) -> None:
    hard = batch()
    certain = Batch(hard.images, hard.labels, targets=torch.eye(N))
    by_label = mix_rows(hard, how, 1.0, np.random.default_rng(3))
    blended = mix_rows(certain, how, 1.0, np.random.default_rng(3))
    logits = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch_loss(logits, blended), batch_loss(logits, by_label))
    assert blended.targets is not None
    torch.testing.assert_close(blended.targets.sum(dim=1), torch.ones(N))
