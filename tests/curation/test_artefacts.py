import numpy as np
import pytest

from pipeline.curation.artefacts import fit_texture, measure_texture


def test_closed_forms():
    checks = np.indices((8, 8)).sum(axis=0) % 2 * 255
    images = np.stack([checks, np.full((8, 8), 255), np.zeros((8, 8))])[..., None].astype(np.uint8)
    texture = measure_texture(images)
    assert texture.spread.tolist() == pytest.approx([0.5, 0, 0], abs=1e-4)
    assert texture.dark.tolist() == [0.5, 0, 1]
    assert texture.bright.tolist() == [0.5, 1, 0]
    assert texture.rough[0] > 0.8  # the finest pattern; all but what repeated borders keep


def test_white_noise_loses_what_the_kernel_says():
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 1)).astype(np.uint8)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = 1 - 2 * kernel[1, 1] + (kernel**2).sum()
    assert measure_texture(noise).rough.mean() == pytest.approx(
        expected, abs=0.02
    )  # borders are repeated


def test_real_rows_set_limits_that_they_keep_and_artefacts_do_not(blobs):
    limits = fit_texture([measure_texture(blobs(100, 0).images)])
    fresh = measure_texture(blobs(100, 1).images)
    assert (fresh.spread >= limits.spread).all()
    assert (fresh.bright <= limits.bright).mean() >= 0.98
    assert (fresh.rough <= limits.rough).mean() >= 0.98
    image = blobs(1, 2).images.astype(int)
    noise = np.random.default_rng(0).integers(0, 256, image.shape)
    made = np.concatenate([image // 8 + 100, image * 6, noise]).clip(0, 255).astype(np.uint8)
    blank, clipped, rough = range(3)
    found = measure_texture(made)
    assert found.spread[blank] < limits.spread
    assert found.bright[clipped] > limits.bright
    assert found.rough[rough] > limits.rough


def test_no_images_are_fine():
    assert len(measure_texture(np.zeros((0, 8, 8, 1), dtype=np.uint8)).rough) == 0
