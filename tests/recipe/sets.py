"""Sets and measured regimes that differ from a plain one in what a test names."""

from typing import Any

from pipeline.recipe.facts import SetFacts
from pipeline.recipe.measured import Regime


def facts(**changes: Any) -> SetFacts:
    plain = {
        "labelled": 400,
        "classes": 10,
        "smallest": 10,
        "median": 32.0,
        "largest": 100,
        "pool": 0,
        "image_size_px": 16,
        "image_mode": "L",
    }
    return SetFacts(**{**plain, **changes})


def plain_regime(**changes: Any) -> dict[str, Any]:
    plain = {
        "name": "stripes",
        "labelled": 400,
        "classes": 10,
        "smallest": 10,
        "largest": 100,
        "base": "pool" if changes.get("pool") else "none",
        "pool": 0,
        "image_size_px": 16,
        "image_mode": "L",
        "way": "mixed",
        "best_baseline": "cutmix",
        "gain_points": 2.0,
        "gain_low": 1.0,
        "gain_high": 3.0,
        "tail_gain_points": 4.0,
        "tail_low": 2.0,
        "tail_high": 6.0,
        "decision": "do_not_use",
        "minutes": 20,
        "seeds": 4,
        "splits": 3,
    }
    return {**plain, **changes}


def regime(**changes: Any) -> Regime:
    return Regime.model_validate(plain_regime(**changes))
