"""The gate of the model registry: who may be called champion.

Every finished run enters one version of each of its models. The alias `candidate` is on the newest
one. The alias `champion` moves to a new version only if

- the verdict is `use` or `use_with_care`,
- its gain is a number and not below the lower bound of the gain that the champion itself has
  recorded: a new run may look a little worse by chance, but not worse than what the champion was
  sure of,
- it knows the same classes as the champion: gains of different tasks do not compare.

What was decided stands in the version's tag `gate`, which is written last: a version without it was
interrupted, and is decided when it is met again. Knows MLflow's client by its methods alone.
"""

import math
from collections.abc import Mapping
from typing import Any

CANDIDATE = "candidate"
CHAMPION = "champion"
GATE = "gate"
_ACCEPTED = ("use", "use_with_care")
_MOST_VERSIONS = 1000
_TAG_CHARACTERS = 1000


def gate(new: Mapping[str, str], champion: Mapping[str, str] | None) -> tuple[bool, str]:
    """Decide whether a version becomes the champion.

    Args:
        new: tags of the new version: `decision`, `gain_points`, `classes_digest`.
        champion: tags of the champion, `gain_low_points` and `classes_digest` among them; None:
            there is none.

    Returns:
        May it, and why or why not, in words.
    """
    decision = new.get("decision", "")
    if decision not in _ACCEPTED:
        return False, f"not moved: the verdict is {decision or 'missing'}"
    gain = _number(new, "gain_points")
    if gain is None:
        return False, "not moved: the run has no gain"
    if champion is None:
        return True, f"moved: the first with the verdict {decision}"
    if new.get("classes_digest") != champion.get("classes_digest"):
        return False, (
            "not moved: the champion knows other classes; delete the alias champion to begin anew"
        )
    low = _number(champion, "gain_low_points")
    if low is None:
        return True, "moved: the champion has recorded no lower bound"
    if gain < low:
        return False, (
            f"not moved: the gain, {gain:.2f} points, is below the champion's lower bound, "
            f"{low:.2f}"
        )
    return True, f"moved: the gain, {gain:.2f} points, is not below {low:.2f}"


def enter(
    client: Any, registry: str, run_id: str, model_id: str, source: str, tags: Mapping[str, str]
) -> str:
    """Enter a run's model as a version, once, set the aliases, and return the version.

    A run that has a version already gets no second one; what an interruption left undone is done.

    Args:
        client: MLflow's client.
        registry: name of the registered model; made if it is not there.
        run_id: the run that the model belongs to.
        model_id: the logged model.
        source: where its files are.
        tags: of the version; see `gate`.

    Raises:
        Exception: whatever MLflow raises when the store cannot be reached.
    """
    _have(client, registry)
    versions = client.search_model_versions(f"name = '{registry}'", max_results=_MOST_VERSIONS)
    own = [one for one in versions if one.run_id == run_id]
    if own:
        entered = min(own, key=_age)
    else:
        entered = client.create_model_version(
            registry, source, run_id, tags=_short(tags), model_id=model_id
        )
    version = str(entered.version)
    if all(_age(one) <= _age(entered) for one in versions):
        client.set_registered_model_alias(registry, CANDIDATE, version)
    if GATE not in entered.tags:
        holder = _champion(client, registry)
        if holder is None or str(holder.version) != version:
            moves, reason = gate(tags, None if holder is None else holder.tags)
            if moves:
                client.set_registered_model_alias(registry, CHAMPION, version)
        else:  # interrupted between the alias and the tag
            reason = "moved"
        client.set_model_version_tag(registry, version, GATE, reason[:_TAG_CHARACTERS])
    return version


def _have(client: Any, registry: str) -> None:
    try:
        client.create_registered_model(registry, description="Entered by Replenish; see tags.")
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise


def _champion(client: Any, registry: str) -> Any:
    try:
        return client.get_model_version_by_alias(registry, CHAMPION)
    except Exception as error:
        if getattr(error, "error_code", None) not in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):
            raise
        return None


def _age(version: Any) -> int:
    return int(version.version)


def _number(tags: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(tags[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:_TAG_CHARACTERS] for name, value in tags.items()}
