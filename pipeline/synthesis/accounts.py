"""What became of the candidates: the account of each class and of each rule."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from pipeline.curation.selection import REASON_RULES, Rule
from pipeline.synthesis.ledger import Chosen, ClassLedger, Ledger
from pipeline.synthesis.recipes import Recipe


class RecipeAccount(BaseModel):
    """How one way to draw did in one class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    candidates: int
    good: int


class ClassAccount(BaseModel):
    """What became of one class's candidates.

    Attributes:
        name: class name.
        wanted: images that the plan asks for.
        candidates: images that were drawn.
        good: of them, those that no rule rejects.
        accepted: of these, those that were kept.
        shortfall: wanted and not there.
        reasons: how many candidates got which reason.
        recipes: the ways that were tried, in order; the last rounds drew by the best.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    wanted: int
    candidates: int
    good: int
    accepted: int
    shortfall: int
    reasons: dict[str, int]
    recipes: list[RecipeAccount]


class RuleAccount(BaseModel):
    """What one rule did.

    Attributes:
        rule: its name.
        rejected: candidates that it was the first to reject.
        alone: candidates that it would reject if it were the only one.
        validation_share: share of real validation rows that it would reject, in [0, 1]: what it
            costs in good images; None where there are no validation rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    rejected: int
    alone: int
    validation_share: float | None


def class_accounts(
    ledger: Ledger, chosen: Chosen, wanted: Sequence[int], recipes: Sequence[Recipe]
) -> list[ClassAccount]:
    """Return each class's account, by label."""
    accounts: list[ClassAccount] = []
    for label, one in enumerate(ledger.classes):
        kept = len(chosen.order[label])
        reasons: Counter[str] = Counter({str(name): n for name, n in one.reasons.items()})
        reasons["accepted"] = kept
        reasons["surplus"] += one.good.total() - kept
        accounts.append(
            ClassAccount(
                name=one.name,
                wanted=wanted[label],
                candidates=one.candidates.total(),
                good=one.good.total(),
                accepted=kept,
                shortfall=wanted[label] - kept,
                reasons={name: n for name, n in sorted(reasons.items()) if n},
                recipes=_recipes(one, recipes),
            )
        )
    return accounts


def rule_accounts(
    ledger: Ledger, rules: Sequence[Rule], on_validation: Mapping[Rule, float]
) -> list[RuleAccount]:
    """Return each rule's account, in the order in which they are asked."""
    rejected: Counter[Rule] = Counter()
    for one in ledger.classes:
        for reason, count in one.reasons.items():
            if reason in REASON_RULES:
                rejected[REASON_RULES[reason]] += count
    return [
        RuleAccount(
            rule=rule,
            rejected=rejected[rule],
            alone=ledger.failed[rule],
            validation_share=on_validation.get(rule),
        )
        for rule in rules
    ]


def _recipes(one: ClassLedger, recipes: Sequence[Recipe]) -> list[RecipeAccount]:
    return [
        RecipeAccount(
            name=recipes[number].name, candidates=one.candidates[number], good=one.good[number]
        )
        for number in sorted(one.candidates)
    ]
