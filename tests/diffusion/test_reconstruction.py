import numpy as np
import pytest
import torch

from pipeline.data.images import to_model
from pipeline.diffusion.checkpoints import Generator, GeneratorSpec
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.reconstruction import reconstruction_losses
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import StageError
from pipeline.metrics.membership import membership_auc
from pipeline.seeds import torch_generator

CPU = torch.device("cpu")


def draw(count, seed):
    """Smooth images of 8 px, no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1))
    return coarse.repeat(2, 1).repeat(2, 2).astype(np.uint8), np.arange(count) % 2


def make(model=None, schedule="cosine", prediction="velocity", dropout=0.0):
    spec = GeneratorSpec(("a", "b"), 8, "L", schedule, prediction, False, "rows", None)
    return Generator(spec, model or build_unet(8, "L", 2, Preset(8, 1), 0, dropout), "digest")


class Silent(torch.nn.Module):
    """Answers zero."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def forward(self, seen, time, class_labels, return_dict):
        self.labels.append(class_labels)
        return (torch.zeros_like(seen),)


def losses(generator, images, labels, seed=0, **changes):
    return reconstruction_losses(generator, images, labels, seed, CPU, **changes)


def overfit(generator, images, labels, steps):
    objective = Objective(generator.spec.process, "min_snr", 5.0, 0.0, 2, "float32")
    pixels, classes = to_model(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(generator.model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = objective.draw(
            pixels.repeat(2, 1, 1, 1), classes.repeat(2), torch_generator(1, "overfit", step)
        )
        optimiser.zero_grad()
        objective(generator.model.train(), batch).backward()
        optimiser.step()


def test_a_network_that_knows_its_rows_by_heart_is_found_out_and_an_untrained_one_is_not():
    (members, ours), (others, theirs) = draw(8, 1), draw(24, 2)
    generator = make()
    before = membership_auc(losses(generator, members, ours), losses(generator, others, theirs))
    assert before.low < 0.5 < before.high
    overfit(generator, members, ours, 200)
    after = membership_auc(losses(generator, members, ours), losses(generator, others, theirs))
    assert after.value > 0.9
    assert after.low > before.value


def test_the_loss_of_a_silent_network_is_the_mean_square_of_the_target():
    images, labels = draw(3, 3)
    found = losses(make(Silent(), prediction="sample"), images, labels, levels=4, draws=1)
    # It should say the image itself; min-SNR weighs the levels, all images alike.
    assert found / found[0] == pytest.approx(
        np.array([to_model(images[[i]]).square().mean().item() for i in range(3)])
        / to_model(images[:1]).square().mean().item(),
        rel=1e-5,
    )


def test_every_image_gets_the_same_noises_whatever_stands_beside_it():
    images, labels = draw(6, 4)
    generator = make()
    whole = losses(generator, images, labels)
    assert np.array_equal(losses(generator, images[2:4], labels[2:4]), whole[2:4])
    same = losses(generator, np.repeat(images[:1], 3, axis=0), np.zeros(3, dtype=np.int64))
    assert len(set(same.tolist())) == 1
    assert not np.array_equal(losses(generator, images, labels, seed=1), whole)


def test_more_draws_move_a_loss_only_a_little():
    images, labels = draw(5, 5)
    few, many = (losses(make(), images, labels, draws=n) for n in (2, 40))
    assert few == pytest.approx(many, rel=0.2)
    assert few.std() > 0


def test_labels_are_told_and_dropout_is_off():
    silent = Silent()
    images, labels = draw(2, 6)
    losses(make(silent), images, labels, levels=2, draws=3)
    assert [one.tolist() for one in silent.labels] == [[0] * 6, [1] * 6]
    generator = make(dropout=0.5)
    generator.model.train()
    one, other = (losses(generator, images, labels) for _ in range(2))
    assert np.array_equal(one, other)
    assert generator.model.training


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("lognormal", "edm"), ("linear", "noise"), ("cosine", "sample")]
)
def test_any_noise_process_gives_finite_losses(schedule, prediction):
    found = losses(make(schedule=schedule, prediction=prediction), *draw(3, 7))
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_no_image_has_no_loss_and_bad_requests_are_refused():
    images, labels = draw(3, 8)
    assert losses(make(), images[:0], labels[:0]).shape == (0,)
    with pytest.raises(StageError, match="reconstruction: 3 images, but 2 labels"):
        losses(make(), images, labels[:2])
    with pytest.raises(StageError, match="0 levels, 2 draws; take at least 1"):
        losses(make(), images, labels, levels=0)
