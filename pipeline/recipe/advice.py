"""What prepare leaves and says of the recipe, before anything is trained."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pipeline.folders import write_json
from pipeline.recipe.choose import Recipe, choose
from pipeline.recipe.expect import Expectation, expect
from pipeline.recipe.facts import SetFacts
from pipeline.recipe.measured import read_regimes
from pipeline.recipe.settings import Settings, write_settings

RECIPE = "recipe.json"


def write_recipe(folder: Path, recipe: Literal["auto", "none"], facts: SetFacts) -> str | None:
    """Write `recipe.json` and `settings.json`; return what to say of them, in words.

    With `none` there is nothing to say: `recipe.json` holds the facts alone, and the settings are
    those that need no advice.

    Raises:
        InputError: the measured regimes cannot be read.
    """
    plain: dict[str, Any] = {"recipe": recipe, "facts": asdict(facts)}
    if recipe == "none":
        write_json(folder / RECIPE, plain)
        write_settings(folder, Settings())
        return None
    chosen = choose(facts)
    regimes = read_regimes()
    expectation = expect(facts, chosen.settings.base, regimes)
    elsewhere = expect(facts, "elsewhere", regimes)
    plain["settings"] = chosen.settings.model_dump(mode="json")
    plain["reasons"] = chosen.reasons
    plain["expectation"] = None if expectation is None else asdict(expectation)
    plain["expectation_elsewhere"] = None if elsewhere is None else asdict(elsewhere)
    write_json(folder / RECIPE, plain)
    write_settings(folder, chosen.settings)
    return f"{facts}: {_settings(chosen)}; {_gain(expectation)}{_hint(elsewhere)}"


def _settings(chosen: Recipe) -> str:
    return f"pretrain.base = {chosen.settings.base} ({chosen.reasons['base']})"


def _hint(elsewhere: Expectation | None) -> str:
    """Return what a base would bring that has learned from other images of the kind."""
    if elsewhere is None or elsewhere.gain_low <= 0:
        return ""
    return (
        ". From a base that knows such images already (pretrain.base = run, folder or hub), "
        f"{_in_words(elsewhere)}"
    )


def _in_words(expectation: Expectation) -> str:
    return (
        f"sets like it gained {expectation.gain_points:+.1f} points "
        f"({expectation.gain_low:+.1f} to {expectation.gain_high:+.1f}) over the best baseline "
        f"({', '.join(expectation.regimes)})"
    )


def _gain(expectation: Expectation | None) -> str:
    if expectation is None:
        return "no measured regime is near this set: the comparison will say what it gains"
    found = _in_words(expectation)
    return (
        found if expectation.gain_low > 0 else f"{found}: expect nothing; the comparison will say"
    )
