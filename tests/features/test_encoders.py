import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.features import encoders
from pipeline.features.classifier import build_classifier, embed
from pipeline.features.encoders import make_encoder
from pipeline.features.frozen import Encoder, run_frozen
from pipeline.features.weight_files import digest_tensors

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)


def judge(seed: int):
    return build_classifier(1, 3, 4, 8, seed)


def test_domain_is_the_features_of_the_judges_side_by_side() -> None:
    first, second = judge(0), judge(1)
    encoder = make_encoder("domain", CPU, judges=[first, second])
    expected = np.concatenate([embed(first, IMAGES), embed(second, IMAGES)], axis=1)
    found = encoder.embed(IMAGES)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (len(IMAGES), encoder.width)
    assert found.dtype == np.float32


def test_the_digest_of_domain_is_of_its_judges() -> None:
    digests = [
        make_encoder("domain", CPU, judges=judges).digest
        for judges in ([judge(0)], [judge(0)], [judge(1)], [judge(0), judge(1)])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_selfsupervised_sees_training_and_pool_rows() -> None:
    def made(**rows: np.ndarray) -> Encoder:
        return make_encoder("selfsupervised", CPU, steps=1, **rows)

    both = made(training=IMAGES[:40], pool=IMAGES[40:])
    assert both.digest == made(training=IMAGES).digest
    assert made(training=IMAGES, pool=IMAGES[:0]).digest == both.digest
    with pytest.raises(InputError, match="40 training and pool rows"):
        made(training=IMAGES[:40])


def test_arguments_reach_timm_and_inception(tmp_path, monkeypatch) -> None:
    asked = {}
    monkeypatch.setattr(encoders, "timm_encoder", lambda device, **given: asked.update(given))
    given = {"path": tmp_path, "model": "m", "hub_id": "h", "image_size_px": 7}
    make_encoder("timm", CPU, **given)
    assert asked == given
    monkeypatch.setattr(encoders, "inception_encoder", lambda path, device: (path, device))
    assert make_encoder("inception", CPU, path=tmp_path) == (tmp_path, CPU)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("domain", "domain: no judge was given"),
        ("selfsupervised", "selfsupervised: no training rows were given"),
        ("inception", r"inception: no path .*docs/encoders\.md"),
        ("timm", "timm: give either a path or a hub id"),
    ],
)
def test_what_a_kind_needs_is_named(kind, message) -> None:
    with pytest.raises(InputError, match=message):
        make_encoder(kind, CPU)


@pytest.mark.parametrize(
    "images",
    [IMAGES[0], IMAGES.astype(np.float32), np.zeros((2, 8, 8, 4), np.uint8)],
    ids=["one", "floats", "four channels"],
)
def test_other_arrays_than_images_are_refused(images) -> None:
    with pytest.raises(InputError, match=r"domain: images of shape .* it takes \(N, H, W, C\)"):
        make_encoder("domain", CPU, judges=[judge(0)]).embed(images)


def test_no_images_give_no_rows() -> None:
    encoder = make_encoder("domain", CPU, judges=[judge(0)])
    assert encoder.embed(IMAGES[:0]).shape == (0, encoder.width)


def test_batches_are_put_together_in_order_and_grey_is_repeated() -> None:
    sizes = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(pixels.shape))
        return pixels.float().mean((2, 3))

    found = run_frozen(forward, IMAGES[:5], 3, CPU, batch_images=2)
    assert sizes == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    expected = IMAGES[:5].reshape(5, -1).mean(1)[:, None].repeat(3, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_digest_of_tensors_sees_names_types_shapes_and_values_but_no_order() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    same = [digest_tensors(x) for x in ({"a": a, "b": b}, {"b": b, "a": a.clone()})]
    others = [
        digest_tensors(x)
        for x in (
            {"a": a, "c": b},
            {"a": a, "b": b.double()},
            {"a": a.view(2, 3), "b": b},
            {"a": a + 1e-6, "b": b},
            {"a": a},
            {"a": a.view(2, 3).T, "b": b},
            {"a": a.view(3, 2), "b": b},
        )
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == len(others) + 1
    assert digest_tensors({"n": torch.tensor(3)}) != digest_tensors({"n": torch.tensor(4)})
