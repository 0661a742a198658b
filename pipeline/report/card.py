"""The data card: README.md of the dataset, with the front matter that Hugging Face reads."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.data.store import StoreInfo
from pipeline.report.findings import BaseImages, Pretraining, Training, base_caution
from pipeline.report.quality import quality_lines
from pipeline.report.synthesis import Synthesis
from pipeline.report.verdict import Verdict

_SPLITS = ("train", "validation", "test")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
# All that Markdown or HTML could take for markup, anywhere in a line or a table cell.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:@/=^])")

_WHY = {
    "use": "Worth knowing:",
    "use_with_care": "Use them with care, because:",
    "do_not_use": "Why not:",
}

_LOADING = """\
```python
import torch
from datasets import load_dataset

data = load_dataset("path/to/this/folder")
train = data["train"].with_format("torch", columns=["image", "label"])
sampler = torch.utils.data.WeightedRandomSampler(
    data["train"]["sampling_weight"], num_samples=len(train), replacement=True
)
loader = torch.utils.data.DataLoader(train, batch_size=64, sampler=sampler)
```
"""

_LIMITS = """\
- **Never test on synthetic rows.** They stand in `train` only; keep it so. A score on synthetic
  images says how well a classifier knows the generator, not the world.
{basis}
- The winning arm was picked by validation rows; no choice was made by scores on test rows.
- The weights repeat the draws of the comparison, not the rest of what the winning arm does (its
  augmentation, its loss, or the order of its training).
- Synthetic images can carry on what is wrong or one-sided in the real ones, and cannot show what
  those do not hold. Copies are looked for by pixel distance, which does not see every kind of copy.
- Licence and privacy terms are those of the real images. Nothing is added, and nothing is proven
  about privacy.
"""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells.

    Attributes:
        name: of the dataset.
        store: of the dataset that the card lies in.
        synthetic_counts: class name -> synthetic training rows in it.
        verdict: of the comparison.
        synthesis: what was generated and accepted.
        pretraining: what the generator started from.
        base_images: how many images that base has seen; None where there is none, or it is not
            known.
        training: how the generator was trained.
        copy_limit: largest share of copies in a network that is kept, in [0, 1].
        settings: params of the stage synthesize.
        source: params of the stage prepare.
        share: chance that a draw is synthetic; None where the dataset is real alone.
    """

    name: str
    store: StoreInfo
    synthetic_counts: Mapping[str, int]
    verdict: Verdict
    synthesis: Synthesis
    pretraining: Pretraining
    base_images: BaseImages | None
    training: Training
    copy_limit: float
    settings: Mapping[str, Any]
    source: Mapping[str, Any]
    share: float | None


def data_card(facts: CardFacts) -> str:
    """Return README.md: Markdown behind YAML front matter.

    The front matter names the files of each split, so that `datasets.load_dataset(folder)` finds
    them. Text of users (class names) is escaped, and nothing in the card depends on the time.
    """
    parts = [
        f"---\n{_front_matter(facts)}---\n",
        f"# {escape_markdown(facts.name)}\n",
        _opening(facts),
        "## Verdict\n",
        _verdict(facts),
        "## Rows\n",
        _rows(facts),
        "## How to load it\n",
        _LOADING,
        _weights(facts),
        "## Columns\n",
        _columns(facts),
        "## How the synthetic images were made and kept\n",
        _making(facts),
        *_quality(facts),
        "## What the generator started from, and how copying was watched\n",
        _training(facts),
        "## Limits\n",
        _LIMITS.format(basis=_basis(facts.verdict)) + _base_limits(facts),
    ]
    return "\n".join(parts)


def escape_markdown(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line, also in a table cell."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = _MARKUP.sub(r"\\\1", flat.replace("&", "&amp;"))
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def _front_matter(facts: CardFacts) -> str:
    splits = [split for split in _SPLITS if split in facts.store.counts]
    rows = sum(sum(facts.store.counts[split].values()) for split in splits)
    data: dict[str, Any] = {
        "pretty_name": facts.name,
        "task_categories": ["image-classification"],
        "size_categories": [next((name for top, name in _SIZES if rows < top), "n>1M")],
        "tags": ["replenish", "synthetic" if facts.share is not None else "real"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in splits
                ],
            }
        ],
        "replenish": {
            "classes": list(facts.store.classes),
            "dataset_digest": facts.store.digest,
            "decision": facts.verdict.decision,
            "generator_digest": facts.synthesis.generator_digest,
            "base": facts.pretraining.base,
            "base_digest": facts.pretraining.base_digest,
        },
    }
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1_000_000)
    return text


def _opening(facts: CardFacts) -> str:
    store = facts.store
    colour = "grey" if store.image_mode == "L" else "colour"
    kind = f"{store.image_size_px} x {store.image_size_px} px {colour} images"
    source = str(facts.source.get("source", "unknown"))
    if facts.share is None:
        return (
            f"Real {kind} in {len(store.classes)} classes (source: `{source}`), checked and split "
            "by Replenish. No synthetic image is in it, because the comparison below did not show "
            "that they help.\n"
        )
    return (
        f"Real {kind} in {len(store.classes)} classes (source: `{source}`), with synthetic "
        "training images from a class-conditional diffusion model that was trained on the real "
        f"training images{' alone' if facts.pretraining.base == 'none' else ', from a base'}. The "
        "column `origin` says which row is which. Validation and test are real.\n"
    )


def _verdict(facts: CardFacts) -> str:
    verdict = facts.verdict
    low, high = verdict.interval_points
    text = (
        f"**{escape_markdown(verdict.sentence)}**\n\n"
        f"Gain in balanced accuracy on {verdict.n.test:,} real test images: "
        f"{verdict.gain_points:+.2f} points, {100 * verdict.level:.4g} % interval "
        f"{low:+.2f} to {high:+.2f} ({verdict.n.seeds} paired seeds, "
        f"{verdict.n.bootstrap_resamples:,} bootstrap resamples). "
        f"Decision: `{verdict.decision}`.\n"
    )
    if verdict.reasons:
        text += f"\n{_WHY[verdict.decision]}\n\n"
        text += "".join(f"- {escape_markdown(reason)}\n" for reason in verdict.reasons)
    best = verdict.arm(verdict.best_synthetic)
    if best is not None:
        text += (
            f"\nHow the best arm with synthetic images ({escape_markdown(best.name)}) used them: "
            f"{escape_markdown(best.description)}.\n"
        )
    return text


def _basis(verdict: Verdict) -> str:
    if verdict.n.splits > 1:
        return (
            f"- The verdict comes from {verdict.n.splits} splits of one dataset and "
            f"{verdict.n.seeds} seeds of one classifier. The interval covers the draw of splits, "
            "test images and seeds. It\n  does not cover another classifier, or images from "
            "elsewhere."
        )
    return (
        "- The verdict comes from one split of one dataset, one trained generator and "
        f"{verdict.n.seeds} seeds of one\n  classifier. The interval covers the draw of test "
        "images and seeds. It does not cover another\n  split, another generator, another "
        "classifier, or images from elsewhere."
    )


def _rows(facts: CardFacts) -> str:
    counts = facts.store.counts
    header = ("Class", "Train, real", "Train, synthetic", "Validation", "Test")
    body: list[tuple[str, ...]] = []
    totals = [0, 0, 0, 0]
    for name in facts.store.classes:
        synthetic = facts.synthetic_counts.get(name, 0)
        numbers = [
            counts.get("train", {}).get(name, 0) - synthetic,
            synthetic,
            counts.get("validation", {}).get(name, 0),
            counts.get("test", {}).get(name, 0),
        ]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        body.append((escape_markdown(name), *(f"{number:,}" for number in numbers)))
    body.append(("**All**", *(f"**{total:,}**" for total in totals)))
    return _table(header, body)


NOT_HERE = {  # what these arms see beside real and synthetic images
    "mixed_pool": "unlabelled images with the probabilities of an ensemble",
    "mixed_base": "images that the generator's base was trained on",
}


def _weights(facts: CardFacts) -> str:
    if facts.share is None:
        how = "every class is drawn equally often, and so is every row within its class"
    else:
        how = (
            "every class is drawn equally often; within a class that has synthetic rows, "
            f"{100 * facts.share:g} % of the draws are synthetic, as in the winning arm "
            f"({escape_markdown(facts.verdict.best_synthetic)})"
        )
        if others := NOT_HERE.get(facts.verdict.best_synthetic):
            how += (
                f", which draws {others} as often. These are not in this dataset: to train without "
                "them is another way than the one that was measured"
            )
    return (
        f"`sampling_weight` is the chance of each training row to be drawn: {how}. The weights add "
        "up to 1 over `train`; they are 0 in `validation` and `test`, which are never drawn from.\n"
    )


_MODES = {
    "generate": "noise",
    "edit": "training images of the class",
    "cross_class": "training images of other classes",
    "inpaint": "training images of the class, with a part drawn anew",
}


def _columns(facts: CardFacts) -> str:
    lines = [
        "- `image`, `label`: PNG and class index",
        "- `id`: sha256 of the pixels",
        "- `split`, `group`: rows of one group stay in one split",
        "- `origin`: `real` or `synthetic`",
        "- `sampling_weight`: see above",
    ]
    if facts.share is not None:
        lines += [
            "- lineage of synthetic rows, null in real ones: `generator`, `mode`, `index`, `seed`, "
            "`sampler`, `sampler_steps`, `sampler_spacing`, `sampler_eta`, `guidance`, "
            "`guidance_low`, `guidance_high`, `guide`, `precision`, `round`; of edited ones also "
            "`parent_id`, `strength`, `mask`, `parent_distance`",
            "- scores of synthetic rows, null in real ones: `predicted`, `confidence`, `margin`, "
            "`disagreement`, `nearest_id`, `pixel_distance`, `pixel_ratio`, `near_id`, "
            "`near_residual`, `near_closeness`, `repeat_closeness`, `support_distance`, "
            "`class_ratio`, `spread`, `dark`, `bright`, `rough`, `reason`",
        ]
    return "\n".join(lines) + "\n"


def _making(facts: CardFacts) -> str:
    made, settings = facts.synthesis, facts.settings
    reasons: dict[str, int] = {}
    for account in made.classes:
        for reason, count in account.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    pairs: list[tuple[str, Any]] = [
        ("Generator digest", made.generator_digest),
        ("Network", made.generator),
        ("Drawn from", _MODES.get(made.mode, made.mode)),
        ("Sampler", f"{made.sampler}, {made.sampler_steps} steps"),
        ("Guidance", made.guidance + (", found by search" if made.guidance_reason else "")),
        *([("Root seed", settings["seed"])] if "seed" in settings else []),
        ("Rounds", made.rounds),
        ("Candidates", f"{made.candidates:,}"),
        ("Accepted", f"{made.accepted:,}"),
        ("Judge's balanced accuracy on validation", f"{made.judge_validation_accuracy:.3f}"),
    ]
    cells = [(title, f"`{value}`") for title, value in pairs]
    text = _table(("What", "Value"), cells)
    text += "\nThresholds, fitted on real validation rows or set:\n\n"
    limits = [(f"`{name}`", asked) for name, asked in made.limits]
    text += _table(("Threshold", "Value"), limits)
    if made.plan:
        text += f"\nThe number of images was planned: {escape_markdown(made.plan.reason)}.\n"
    if made.search:
        text += (
            f"\nGuidance is the best of {len(made.search)} settings, by kernel distance and "
            "coverage on validation rows.\n"
        )
    if reasons:
        text += "\nWhat became of the candidates:\n\n"
        fates = [(f"`{name}`", f"{count:,}") for name, count in sorted(reasons.items())]
        text += _table(("Reason", "Candidates"), fates)
    return text


def _quality(facts: CardFacts) -> list[str]:
    lines = quality_lines(facts.synthesis.quality)
    if not lines:
        return []
    body = []
    for one in lines:
        value = one.refusal or _with_interval(one.value, one.interval)
        cells = (value, _with_interval(one.ceiling, one.ceiling_interval))
        texts = (f"{one.label} ({one.encoder})", *cells, one.images, one.better)
        body.append(tuple(escape_markdown(text) for text in texts))
    return [
        "## Quality of the accepted images\n",
        "The ceiling is the same metric, at the same number of images, of real images in their "
        "place. Brackets hold 95 % intervals.\n\n"
        + _table(("Metric (of)", "Value", "Ceiling", "Images", "Good is"), body),
    ]


def _with_interval(number: str, interval: str) -> str:
    return f"{number} ({interval})" if interval else number


def _training(facts: CardFacts) -> str:
    training = facts.training
    limit, share = 100 * facts.copy_limit, training.copy_share
    found = "it was not measured" if share is None else f"{100 * share:.1f} % are copies"
    endurance = escape_markdown(training.endurance)
    return (
        f"{_base(facts.pretraining)}\n\n"
        "On the way, samples were compared with the training images. A network was kept only if at "
        f"most {limit:g} % of its samples were copies, or else the one that copied least. Of "
        f"the network that made these images, kept at step {training.kept_step:,}: {found}. "
        f"How long the images last: {endurance}.\n{_student(facts)}"
    )


def _student(facts: CardFacts) -> str:
    student = facts.training.student
    if student is None:
        return ""
    return f"\n{escape_markdown(student.sentence(facts.synthesis.generator_digest))}\n"


def _base(pretraining: Pretraining) -> str:
    source = escape_markdown(pretraining.source or "unknown")
    digest = f"digest `{(pretraining.base_digest or 'unknown')[:12]}`"
    if pretraining.base == "none":
        return "The generator started from nothing: its weights began at random."
    if pretraining.images:
        return (
            f"The generator started from a pool of {pretraining.images:,} images, on which it was "
            f"first trained without labels ({digest})."
        )
    kind = {
        "pool": "a network trained without labels",
        "folder": "a diffusers folder",
        "hub": "the Hugging Face hub",
        "run": "an earlier run",
    }[pretraining.base]
    return f"The generator started from the base {source} ({kind}, {digest})."


def _base_limits(facts: CardFacts) -> str:
    store = facts.store
    caution = base_caution(
        facts.pretraining,
        facts.base_images,
        facts.verdict,
        store.image_size_px,
        store.image_mode,
    )
    return f"- {caution}\n" if caution else ""


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *body))
