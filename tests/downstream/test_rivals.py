import numpy as np

from pipeline.downstream.bench import join_rivals, read_rivals, write_rivals
from pipeline.downstream.rivals import pseudo_labelled, retrieved, smote_rows

RANDOM = np.random.default_rng(0)


def test_smote_rows_lie_between_rows_of_their_class() -> None:
    dark = RANDOM.integers(0, 40, (6, 4, 4, 1), dtype=np.uint8)
    bright = RANDOM.integers(200, 256, (2, 4, 4, 1), dtype=np.uint8)
    single = np.full((1, 4, 4, 1), 128, dtype=np.uint8)
    images = np.concatenate([dark, bright, single])
    labels = np.array([0] * 6 + [1] * 2 + [2])
    made, of_class = smote_rows(images, labels, seed=1)
    assert np.bincount(of_class, minlength=3).tolist() == [12, 12, 0]  # a single row has none
    assert made[of_class == 0].max() < 40
    low, high = bright.min(axis=0), bright.max(axis=0)
    assert ((made[of_class == 1] >= low) & (made[of_class == 1] <= high)).all()
    again, _ = smote_rows(images, labels, seed=1)
    assert (again == made).all()


def test_a_single_class_has_no_smote_rows() -> None:
    made, labels = smote_rows(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int64), seed=0)
    assert made.shape == (0, 4, 4, 1)
    assert labels.shape == (0,)


def test_sure_pseudo_labels_are_kept_and_the_surest_first() -> None:
    pool = np.arange(5, dtype=np.uint8)[:, None, None, None]
    one = np.array([[0.99, 0.01], [0.7, 0.3], [0.95, 0.05], [0.05, 0.95], [0.97, 0.03]])
    other = np.array([[0.99, 0.01], [0.7, 0.3], [0.95, 0.05], [0.85, 0.15], [0.97, 0.03]])
    images, labels = pseudo_labelled(pool, [one, other], confidence=0.9, most=2)
    assert images.ravel().tolist() == [0, 4]  # 3 is where they disagree, 2 is one too many
    assert labels.tolist() == [0, 0]


def test_retrieved_rows_have_the_label_of_the_nearest_training_row() -> None:
    pool = np.arange(4, dtype=np.uint8)[:, None, None, None]
    of_pool = np.array([[1.0, 0.1], [0.1, 2.0], [1.0, 0.9], [0.0, 1.0]])
    features = np.array([[5.0, 0.0], [0.0, 0.5]])
    images, labels = retrieved(pool, of_pool, features, np.array([1, 0]), most=1)
    assert dict(zip(images.ravel().tolist(), labels.tolist(), strict=True)) == {0: 1, 3: 0}


def test_rows_keep_the_probabilities_that_are_known_of_them(tmp_path) -> None:
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([1, 0])
    soft = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float16)
    made = join_rivals(
        {"pseudo_labels_soft": (images, labels), "pseudo_labels": (images, labels)}, soft
    )
    write_rivals(tmp_path / "rivals.npz", made)
    found = read_rivals(tmp_path / "rivals.npz")
    assert found.mask("pseudo_labels_soft").tolist() == [False, False, True, True]
    assert found.probabilities.tolist() == soft.tolist()
