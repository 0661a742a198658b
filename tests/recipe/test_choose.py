import pytest
from recipe.sets import facts

from pipeline.data.store import StoreInfo
from pipeline.recipe.choose import LEAST_POOL_IMAGES, choose
from pipeline.recipe.facts import SetFacts, set_facts


@pytest.mark.parametrize(
    ("labelled", "pool", "base", "reason"),
    [
        (100, 0, "none", "no unlabelled images"),
        (100, 499, "none", "fewer than 500 unlabelled images"),
        (250, 500, "pool", "2.0 unlabelled images for each training image"),
        (251, 501, "none", "fewer than 2 unlabelled images for each training image"),
        (409, 57_000, "pool", "139.4 unlabelled images for each training image"),
    ],
)
def test_a_base_of_the_pool_needs_a_large_pool(
    labelled: int, pool: int, base: str, reason: str
) -> None:
    recipe = choose(facts(labelled=labelled, pool=pool))
    assert (recipe.settings.base, recipe.reasons) == (base, {"base": reason})


def test_a_set_without_training_images_is_no_fault_here() -> None:
    assert choose(facts(labelled=0, pool=LEAST_POOL_IMAGES)).settings.base == "pool"


def test_facts_are_those_of_the_training_rows_and_the_pool() -> None:
    info = StoreInfo(
        classes=("a", "b", "c", "d"),
        image_size_px=28,
        image_mode="RGB",
        counts={
            "train": {"a": 60, "b": 10, "d": 6},
            "test": {"a": 9, "b": 9, "c": 9, "d": 9},
            "pool": {"unlabelled": 1200},
        },
        digest="",
    )
    assert set_facts(info) == SetFacts(76, 4, 0, 8.0, 60, 1200, 28, "RGB")


def test_facts_in_words() -> None:
    assert str(facts(labelled=409, pool=57_000)) == (
        "409 training images in 10 classes (10 to 100), 57,000 unlabelled ones, 16 px"
    )
    assert "no unlabelled ones" in str(facts())
