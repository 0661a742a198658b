"""The rules: from the facts of a set to settings, each with its reason in words."""

from dataclasses import dataclass

from pipeline.recipe.facts import SetFacts
from pipeline.recipe.settings import Settings

# A base is worth its time where the pool holds much that the training images do not; where that
# begins is chosen, not measured.
LEAST_POOL_IMAGES = 500
LEAST_POOL_SHARE = 2.0  # unlabelled images for each training image


@dataclass(frozen=True)
class Recipe:
    """Settings, and why.

    Attributes:
        settings: what `auto` stands for.
        reasons: setting -> its reason in words.
    """

    settings: Settings
    reasons: dict[str, str]


def choose(facts: SetFacts) -> Recipe:
    """Return the settings for a set."""
    pool, share = facts.pool, facts.pool / max(facts.labelled, 1)
    if not pool:
        return _without_base("no unlabelled images")
    if pool < LEAST_POOL_IMAGES:
        return _without_base(f"fewer than {LEAST_POOL_IMAGES} unlabelled images")
    if share < LEAST_POOL_SHARE:
        return _without_base(
            f"fewer than {LEAST_POOL_SHARE:g} unlabelled images for each training image"
        )
    return Recipe(
        Settings(base="pool"), {"base": f"{share:,.1f} unlabelled images for each training image"}
    )


def _without_base(reason: str) -> Recipe:
    return Recipe(Settings(base="none"), {"base": reason})
