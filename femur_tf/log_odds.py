"""Probabilities as log-odds, the scale on which they are interpolated and averaged.

Between a voxel of bone and one of background a linear probability crosses a cut-off below one half too late: the
femur grows with every resampling. Log-odds cross it near the middle, whatever the cut-off (docs/axes_and_spacing.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

LEAST = 2.0**-11
"""Stands for a probability of 0, and 1 - LEAST for 1: the last step below 1 that a float16 map has."""


def of(probability: np.ndarray) -> np.ndarray:
    """Return the log-odds of probabilities.

    Args:
      probability: in [0, 1], any shape and float.

    Returns:
      float32, the same shape, within +- 7.62: [0, 1] is first brought to [LEAST, 1 - LEAST].

    Example:
      >>> of(np.array([0.0, 0.5, 1.0])).round(2).tolist()
      [-7.619999885559082, 0.0, 7.619999885559082]
    """
    scaled = LEAST + (1 - 2 * LEAST) * probability.astype(np.float32)
    return np.asarray(special.logit(scaled), np.float32)


def back(values: np.ndarray) -> np.ndarray:
    """Return the probabilities of log-odds, the reverse of `of`: float32 in [0, 1]."""
    probability = (special.expit(values.astype(np.float32)) - LEAST) / (1 - 2 * LEAST)
    return np.asarray(np.clip(probability, 0, 1), np.float32)


def mean(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of maps of probabilities, all of one shape: that of their log-odds, float32 in [0, 1]."""
    return back(np.mean([of(one) for one in maps], axis=0))


def times(probability: float, factor: float) -> float:
    """Return the probability whose odds are so many times those of another, as of a cut-off that is moved.

    Args:
      probability: in [0, 1].
      factor: above 0.

    Example:
      >>> times(0.5, 4.0)
      0.8
    """
    return factor * probability / (1 - probability + factor * probability)
