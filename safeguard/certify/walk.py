"""The number of flagged images as a walk that stops at boundaries: exact probabilities by recursion over the looks.

Between two looks the number grows by a binomial one. The distribution of walks that have not stopped is carried from
look to look (Armitage, McPherson & Rowe 1969, J. R. Statist. Soc. A 132, 235–244; for binomial looks Jennison &
Turnbull 2000, Group Sequential Methods, ch. 12).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stopped(looks: Sequence[int], rates: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Probability of stopping at each look, at or below the low boundary and at or above the high one: (Q, J, 2).

    Args:
        looks: J numbers of images, ascending.
        rates: true rates (Q,).
        low: most flagged images with which the walk stops low (Q, J); -1: it does not.
        high: fewest with which it stops high (Q, J), above ``low``.
    """
    found = np.zeros((len(rates), len(looks), 2))
    walking, before = np.ones((len(rates), 1)), 0
    for look, samples in enumerate(looks):
        walking, before = _convolved(walking, binomial(samples - before, rates)), samples
        flagged = np.arange(samples + 1)
        for side, out in enumerate((flagged <= low[:, look, None], flagged >= high[:, look, None])):
            found[:, look, side] = np.where(out, walking, 0).sum(axis=1)
            walking = np.where(out, 0, walking)
    return found


def binomial(samples: int, rates: np.ndarray) -> np.ndarray:
    """Probability of 0 to n flagged images at each rate: (Q, n + 1)."""
    from scipy.special import gammaln, xlog1py, xlogy

    flagged = np.arange(samples + 1)
    ways = gammaln(samples + 1) - gammaln(flagged + 1) - gammaln(samples - flagged + 1)
    rate = rates[:, None]
    chances: np.ndarray = np.exp(ways + xlogy(flagged, rate) + xlog1py(samples - flagged, -rate))
    return chances


def _convolved(walking: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Distribution of the sum, row by row; what rounding makes of a zero is at most 1e-15."""
    length = walking.shape[1] + steps.shape[1] - 1
    size = 1 << (length - 1).bit_length()
    product = np.fft.rfft(walking, size) * np.fft.rfft(steps, size)
    return np.maximum(np.fft.irfft(product, size)[:, :length], 0)
