"""Classifiers whose true accuracy is known: probit outcomes with image, seed and class terms."""

import numpy as np
from scipy.stats import norm

from pipeline.downstream.compare import SplitOutcomes


def draw_outcomes(random, seeds, images, classes=5, arms=1, gain=0.0, class_sd=0.25, noise_sd=0.5):
    """Return arms "0", "1"... of equal accuracy 0.8, but for `gain` (in [0, 1]) of arm "1"."""
    labels = np.repeat(np.arange(classes), images)
    spread = np.sqrt(1 + 0.4**2 + class_sd**2 + noise_sd**2)
    value = random.normal(spread * norm.ppf(0.8), 1, len(labels))
    value = value + random.normal(0, 0.4, (arms + 1, 1, len(labels)))
    value[1] += spread * (norm.ppf(0.8 + gain) - norm.ppf(0.8))
    value = value + random.normal(0, noise_sd, (arms + 1, seeds, len(labels)))
    value += random.normal(0, class_sd, (arms + 1, seeds, classes))[:, :, labels]
    right = value > 0
    ids = np.array([f"{i:05d}" for i in range(len(labels))])
    return SplitOutcomes(labels, ids, {str(arm): right[arm] for arm in range(arms + 1)})
