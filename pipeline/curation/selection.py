"""The rules of acceptance, and the reason of each candidate that does not pass one."""

from typing import Literal, get_args

from pipeline.params import FilterName

Rule = FilterName
Reason = Literal[
    "accepted",
    "repeat",
    "copy_parent",
    "copy_ratio",
    "copy_distance",
    "near_copy",
    "blank",
    "saturated",
    "noisy",
    "disagrees",
    "uncertain",
    "unsure",
    "unreal",
    "off_class",
    "typical",
    "near_repeat",
    "surplus",
]

RULES: tuple[Rule, ...] = get_args(Rule)  # in the order in which they are asked
MOST_RULES: frozenset[Rule] = frozenset(RULES) - {"typical"}

REASONS: dict[Reason, str] = {
    "accepted": "kept",
    "repeat": "the same pixels as a real image or as an earlier candidate",
    "copy_parent": "nearer to the training image that it was made from than held-out real images "
    "come to any: a copy of it",
    "copy_ratio": "far nearer to one training image than to any other: a copy of it",
    "copy_distance": "nearer to a training image than held-out real images come: a copy of it",
    "near_copy": "one training image moved, mirrored, relit or with noise, as no held-out real "
    "image is",
    "blank": "hardly any contrast, less than half of what real images have",
    "saturated": "more pixels fully black or fully white than in real images",
    "noisy": "rougher from pixel to pixel than real images: noise",
    "disagrees": "the judges see another class, and are surer of it than with held-out real images",
    "uncertain": "the judges disagree among each other about it, more than about held-out real "
    "images",
    "unsure": "the judges are less sure of the class than of held-out real images",
    "unreal": "farther from the real images of its class than held-out real ones lie",
    "off_class": "nearer to the real images of another class than to its own, by more than "
    "held-out real ones are",
    "typical": "too near the middle of its class to teach anything new",
    "near_repeat": "nearly the same picture as an earlier candidate of its class",
    "surplus": "good, but the class has all the images that it wanted",
}

REASON_RULES: dict[Reason, Rule] = {
    "copy_parent": "copies",
    "copy_ratio": "copies",
    "copy_distance": "copies",
    "near_copy": "near_copies",
    "blank": "artefacts",
    "saturated": "artefacts",
    "noisy": "artefacts",
    "disagrees": "labels",
    "uncertain": "labels",
    "unsure": "labels",
    "unreal": "realism",
    "off_class": "off_class",
    "typical": "typical",
    "near_repeat": "repeats",
}
