import numpy as np
import pytest

from pipeline.curation.repeats import Repeats

LIMIT = 0.1


def judge(index, images, labels=None, residual=0.5, joins=True, limit=LIMIT):
    count = len(images)
    return index.judge(
        images,
        np.zeros(count, dtype=np.int64) if labels is None else labels,
        np.full(count, residual),
        np.full(count, joins),
        limit,
    )


def noisy(images, seed):
    noise = np.random.default_rng(seed).normal(0, 4, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", [8, 28, 64])
def test_every_near_identical_repeat_is_seen_and_no_other_picture(blobs, side):
    images = blobs(60, 0, side=side).images
    index = Repeats()
    assert judge(index, images).min() >= LIMIT
    assert judge(index, noisy(images, 1)).max() < LIMIT
    assert judge(index, np.roll(images, 1, axis=2)).max() < LIMIT
    assert judge(index, blobs(60, 2, side=side).images).min() >= LIMIT


def test_a_repeat_of_a_repeat_is_still_one(blobs):
    image = blobs(1, 0).images
    many = np.concatenate([image, *(noisy(image, seed) for seed in range(10))])
    closeness = judge(Repeats(), many)
    assert closeness[0] == 1
    assert (closeness[1:] < LIMIT).all()


def test_what_did_not_stay_and_other_classes_are_not_compared_with(blobs):
    image = blobs(1, 0).images
    index = Repeats()
    judge(index, image, joins=False)
    judge(index, image, labels=np.array([3]))
    assert judge(index, noisy(image, 1))[0] >= LIMIT


def test_the_answer_does_not_depend_on_how_the_candidates_are_cut(blobs, monkeypatch):
    first = blobs(90, 0).images
    order = np.random.default_rng(0).permutation(150)
    images = np.concatenate([first, noisy(first[:60], 1)])[order]
    labels = (np.concatenate([np.arange(90), np.arange(60)]) % 2)[order]
    joins = np.random.default_rng(1).random(150) < 0.8

    def closeness(cut):
        index = Repeats()
        parts = [
            index.judge(
                images[i : i + cut], labels[i : i + cut], np.full(150, 0.4)[i : i + cut],
                joins[i : i + cut], LIMIT,
            )
            for i in range(0, 150, cut)
        ]  # fmt: skip
        return np.concatenate(parts)

    whole = closeness(150)
    assert 20 < (whole < LIMIT).sum() < 60
    for cut in (1, 7, 64):
        assert (closeness(cut) == whole).all()
    monkeypatch.setattr("pipeline.curation.repeats._CHUNK_ROWS", 16)
    assert (closeness(32) == whole).all()


def test_memory_of_a_candidate_is_bounded_whatever_its_size():
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    index = Repeats()
    judge(index, images)
    kept = index._kept[0]
    assert kept.thumbs[0][0].nbytes + kept.descriptors[0][0].nbytes <= 1536
