"""What prepare leaves and says of the recipe, before anything is trained.

What it leaves follows from the set and the params alone. The gain to expect follows from the
measured regimes too, which are no part of a stage's key: it is said, and kept in the run's log.
"""

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

    The words alone tell which gain to expect. With `none` there is nothing to say: `recipe.json`
    holds the facts alone, and the settings are those that need no advice.

    Raises:
        InputError: the measured regimes cannot be read.
    """
    plain: dict[str, Any] = {"recipe": recipe, "facts": asdict(facts)}
    if recipe == "none":
        write_json(folder / RECIPE, plain)
        write_settings(folder, Settings())
        return None
    chosen = choose(facts)
    plain["settings"] = chosen.settings.model_dump(mode="json")
    plain["reasons"] = chosen.reasons
    write_json(folder / RECIPE, plain)
    write_settings(folder, chosen.settings)
    regimes = read_regimes()
    gain = _gain(expect(facts, chosen.settings.base, regimes), facts)
    hint = _hint(expect(facts, "elsewhere", regimes), facts)
    return f"{facts}: {_settings(chosen)}; {gain}{hint}"


def _settings(chosen: Recipe) -> str:
    return f"pretrain.base: auto = {chosen.settings.base} ({chosen.reasons['base']})"


def _hint(elsewhere: Expectation | None, facts: SetFacts) -> str:
    """Return what a base would bring that has learned from other images of the kind."""
    if elsewhere is None or not _may_gain(elsewhere):
        return ""
    return (
        ". From a base that knows such images already (pretrain.base: run, folder or hub) and "
        f"whose own images are not at hand, {_with_doubt(elsewhere, facts)}"
    )


def _may_gain(expectation: Expectation) -> bool:
    return expectation.used and expectation.gain_points > 0


def _with_doubt(expectation: Expectation, facts: SetFacts) -> str:
    """Return what sets like it gained, and how far that may be expected.

    A gain stands alone where it did get a `use` and its interval lies above 0.
    """
    found = _in_words(expectation, facts)
    if not _may_gain(expectation):
        return f"{found}: expect nothing; the comparison will say"
    if expectation.gain_low <= 0:
        return f"{found}: perhaps; the comparison will say"
    return found


def _in_words(expectation: Expectation, facts: SetFacts) -> str:
    tail = ""
    if 2 * facts.smallest <= facts.largest:  # among equal classes none is thin
        tail = (
            f", in the thinnest classes {expectation.tail_gain_points:+.1f} "
            f"({expectation.tail_low:+.1f} to {expectation.tail_high:+.1f})"
        )
    return (
        f"sets like it gained {expectation.gain_points:+.1f} points "
        f"({expectation.gain_low:+.1f} to {expectation.gain_high:+.1f}){tail}, over the best "
        f"baseline ({', '.join(expectation.regimes)})"
    )


def _gain(expectation: Expectation | None, facts: SetFacts) -> str:
    if expectation is None:
        return "no measured regime is near this set: the comparison will say what it gains"
    return _with_doubt(expectation, facts)
