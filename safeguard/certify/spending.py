"""Alpha spending: planned looks share the error by a function of how many of the images are there.

By look ``j``, at the share ``t_j = n_j / n`` of all images, an error of at most ``alpha(t_j)`` has been spent (Lan &
DeMets 1983, Biometrika 70, 659–663). The bounds of a look are Clopper–Pearson's at a nominal level ``a_j``. The first
level is ``alpha(t_1)``, every further one the largest with which no rate is missed, at one of the looks so far, with
more than ``alpha(t_j)``. That is computed exactly, by recursion over the looks: the normal approximation of the
literature would promise too much at rates near 0, which are those a certification is about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from safeguard.certify.statistics import exceedance_p, lower_bound, upper_bound
from safeguard.certify.walk import stopped
from safeguard.policy.sampling import Shape

HALVINGS = 8
"""Steps of the search for a level; what it leaves unspent is below half a percent of the level."""
PLAN_ALPHA = 0.05
"""Error at which the looks' shares of a p-value are fixed, since a p-value knows no alpha."""


@dataclass(frozen=True)
class Spending:
    """Looks fixed beforehand.

    Attributes:
        looks: numbers of images, ascending; the last is all of them.
        shape: how the error is spent.
    """

    looks: tuple[int, ...]
    shape: Shape

    def lower(self, flagged: int, samples: int, alpha: float) -> float:
        """Lower bound of the rate; 0 where the number of images is no look."""
        level = self._level(samples, alpha)
        return lower_bound(flagged, samples, level) if level else 0.0

    def upper(self, flagged: int, samples: int, alpha: float) -> float:
        """Upper bound of the rate; 1 where the number of images is no look."""
        level = self._level(samples, alpha)
        return upper_bound(flagged, samples, level) if level else 1.0

    def exceedance_p(self, flagged: int, samples: int, limit: float) -> float:
        """P-value of "the rate is at most ``limit``" that may be read at any look: Clopper–Pearson's over its share.

        The shares of the looks add up to one, so it is at most ``x`` at any of them with probability at most ``x``
        (weighted Bonferroni), for every ``x`` at once; bounds at one ``alpha`` are sharper.
        """
        spent = [spending(self.shape, look / self.looks[-1], PLAN_ALPHA) / PLAN_ALPHA for look in self.looks]
        shares = dict(zip(self.looks, np.diff(spent, prepend=0.0).tolist(), strict=True))
        share = shares.get(samples, 0.0)
        return min(1.0, exceedance_p(flagged, samples, limit) / share) if share else 1.0

    def _level(self, samples: int, alpha: float) -> float | None:
        """The nominal level of a look; none: it is none."""
        if samples not in self.looks:
            return None
        return nominal_levels(self.looks, self.shape, alpha)[self.looks.index(samples)]


def spending(shape: Shape, share: float, alpha: float) -> float:
    """Error spent when this share of all images is there (Lan & DeMets 1983).

    O'Brien–Fleming-like: ``2 - 2 Φ(z_(alpha/2) / sqrt(t))``; Pocock-like: ``alpha ln(1 + (e - 1) t)``.
    """
    from scipy.special import ndtr, ndtri

    if share <= 0:
        return 0.0
    if shape == "pocock":
        return alpha * math.log1p((math.e - 1) * min(1.0, share))
    return 2 * float(ndtr(ndtri(alpha / 2) / math.sqrt(min(1.0, share))))


@lru_cache(maxsize=64)
def nominal_levels(looks: tuple[int, ...], shape: Shape, alpha: float) -> tuple[float, ...]:
    """Level of the Clopper–Pearson bound at each look; both sides share them, since hits and misses are alike."""
    levels: list[float] = []
    spent = 0.0
    for number, samples in enumerate(looks, start=1):
        before, spent = spent, spending(shape, samples / looks[-1], alpha)
        low, high = spent - before, spent  # the sum of the errors, and as if nothing had been spent before
        for _ in range(HALVINGS if levels else 0):
            middle = (low + high) / 2
            error = largest_error(looks[:number], (*levels, middle))
            low, high = (middle, high) if error <= spent else (low, middle)
        levels.append(low)
    return tuple(levels)


def largest_error(looks: tuple[int, ...], levels: tuple[float, ...]) -> float:
    """The largest probability, over all rates, that an upper bound at one of the looks lies at the rate or below it.

    The boundaries that belong to a rate change where the rate is one of the bounds. Between two such places they stand
    still, and to stay below them becomes less likely as the rate grows: the largest is at one of the places.
    """
    from scipy.special import betainccinv

    bounds = [
        betainccinv(np.arange(samples) + 1, samples - np.arange(samples), level)
        for samples, level in zip(looks, levels, strict=True)
    ]
    rates = np.concatenate(bounds)
    low = np.stack([np.searchsorted(bound, rates, side="right") - 1 for bound in bounds], axis=1)
    never = np.full_like(low, looks[-1] + 1)
    return float(stopped(looks, rates, low, never)[..., 0].sum(axis=1).max())
