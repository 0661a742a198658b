"""A finished artifacts folder, small and complete, for the tests of what trackers are told."""

import copy
import json

import numpy as np
from PIL import Image

from pipeline.folders import write_manifest
from pipeline.params import SECTIONS

SCORES = (
    "validation_balanced_accuracy",
    "test_balanced_accuracy",
    "test_macro_f1",
    "tail_recall",
    "test_auroc",
    "calibration_error",
    "worst_group_recall",
    "corrupted_balanced_accuracy",
)
CLASSES = ("a|b", "a_b", "plain")


def _arm(name, role, share, mean, gain):
    bounds = (None, None, None) if gain is None else (gain, gain - 2.0, gain + 2.0)
    return {
        "name": name,
        "role": role,
        "share": share,
        "description": f"how {name} learns",
        "settings": {"learning_rate": 0.003, "schedule": "cosine"},
        "seeds": 4,
        **{score: {"mean": mean, "sd": 0.01} for score in SCORES},
        **dict(zip(("gain_points", "low_points", "high_points"), bounds, strict=True)),
    }


def _class(name, training, regressed=False):
    return {
        "name": name,
        "training_images": training,
        "test_images": 40,
        "baseline_recall": 0.8,
        "synthetic_recall": 0.85,
        "baseline_precision": 0.7,
        "synthetic_precision": 0.75,
        "gain_points": 5.0,
        "low_points": 1.0,
        "high_points": 9.0,
        "simultaneous_low_points": -1.0,
        "simultaneous_high_points": 11.0,
        "regressed": regressed,
    }


VERDICT = {
    "decision": "use",
    "sentence": "Use them: <b>+3 points",
    "reasons": ["class a|b *fell*"],
    "best_baseline": "class_weighted",
    "best_synthetic": "mixed_50",
    "winning_share": 0.5,
    "gain_points": 3.0,
    "interval_points": [1.0, 5.0],
    "confidence": 0.95,
    "level": 0.97,
    "twin": "real_augmented",
    "own_gain_points": 3.5,
    "own_interval_points": [1.5, 5.5],
    "tail_gain_points": 6.0,
    "tail_interval_points": [2.0, 10.0],
    "tail_classes": ["a|b"],
    "per_class": [_class("a|b", 6), _class("a_b", 12), _class("plain", 60, regressed=True)],
    "arms": [
        _arm("class_weighted", "baseline", None, 0.9, None),
        _arm("mixed_50", "synthetic", 0.5, 0.93, 3.0),
    ],
    "corruptions": [{"name": "blur", "baseline": 0.6, "synthetic": 0.7}],
    "power": {
        "minimum_detectable_points": 1.8,
        "power": 0.8,
        "discordant_share": 0.06,
        "seeds": 4,
        "test_images": 120,
        "test_units": 110,
        "sentence": "1.8 points would be seen",
    },
    "looks": [
        {
            "seeds": seeds,
            "gain_points": 2.5 + seeds / 8,
            "low_points": -0.5 + seeds / 4,
            "high_points": 6.0,
            "decided": seeds == 4,
        }
        for seeds in (2, 4)
    ],
    "learning_curve": {
        "arm": "mixed",
        "points": [
            {"real_images": images, "balanced_accuracy": score, "low": 0.7, "high": 0.95}
            for images, score in ((60.0, 0.8), (120.5, 0.9))
        ],
        "worth_images": 40.0,
        "worth_low": 12.0,
        "worth_high": 90.0,
        "beyond": False,
        "sentence": "worth 40 labelled images",
    },
    "n": {
        "training": 78,
        "validation": 30,
        "test": 120,
        "synthetic": 200,
        "seeds": 4,
        "splits": 1,
        "bootstrap_resamples": 2000,
    },
    "seeds": [0, 1, 2, 3],
    "steps": 400,
    "synthetic_available": True,
}
CONTROLS = {
    "rows": [
        {
            "name": "shuffled labels",
            "kind": "negative",
            "gain_points": -4.0,
            "low_points": -6.0,
            "high_points": -2.0,
            "decision": "do_not_use",
            "as_expected": True,
        }
    ]
}
DATASET = {
    "digest": "e" * 64,
    "classes": list(CLASSES),
    "counts": {"train": {"a|b": 6, "a_b": 4}, "test": {"a|b": 3, "a_b": 3}},
}


def write_stage(artifacts, stage, files, params=None):
    """Write one finished stage folder; a dict or list becomes JSON, bytes and text stay."""
    folder = artifacts / stage
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    write_manifest(folder, stage, "k", params or {}, {})


def write_sheet(path, value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def verdict(**changes):
    """The full verdict with some keys changed."""
    return {**copy.deepcopy(VERDICT), **changes}


def write_run(artifacts, told=VERDICT, params=None):
    """Write all seven stages, without models; `params` is section -> its settings."""
    params = params or {}
    for step in (1, 2):
        write_sheet(artifacts / "train" / "samples" / f"step-{step:06d}.png", 40 * step)
    quality = {"name": "vendi_score", "value": 4.5, "ceiling": 6.0}
    files = {
        "prepare": {"summary.json": {"quarantined": 2}, "dataset/dataset.json": DATASET},
        "pretrain": {"summary.json": {"base": "none"}},
        "train": {
            "summary.json": {"steps": 2, "final_loss": 0.5, "generator_digest": "9" * 64},
            "curve.csv": "step,loss,gradient_norm,learning_rate\n1,0.9,1,0.001\n2,0.5,1,0.001\n",
            "checks.csv": "step,ema_length,training_loss,heldout_loss,copy_share,quality\n"
            "2,0.1,0.4,0.6,0,0.25\n",
        },
        "synthesize": {
            "summary.json": {"accepted": 200, "candidates": 260, "quality": [quality]},
            "accepted/dataset.json": {"digest": "5" * 64, "counts": {"train": {"a|b": 200}}},
        },
        "evaluate": {
            "verdict.json": told,
            "arms.csv": "name\n",
            "per_class.csv": "name\n",
            "runs.csv": "arm\n",
            "search.csv": "arm\n",
        },
        "assemble": {"dataset/dataset.json": DATASET, "dataset/README.md": "card"},
        "report": {"index.html": "<p>the report"},
    }
    for name in SECTIONS:
        write_stage(artifacts, name, files[name], params.get(name))
    (artifacts / "controls").mkdir(exist_ok=True)
    (artifacts / "controls" / "controls.json").write_text(json.dumps(CONTROLS))
    return artifacts
