"""Bounds for whoever looks more than once: how many images are drawn, and what their number leaves to be said.

Drawing until the bound suits is no test: five looks at a model whose rate is the limit, each at 5 %, let it pass in one
case of seven. A *sampling* is a plan of looks made before the first image, with bounds that err at no look at all with
probability ``1 - alpha``, whatever the rate is (Jennison & Turnbull 1989, J. R. Statist. Soc. B 51, 305–361). So a
checkpoint may stop at the first look that decides it, for whatever reason, and what is said about it then holds.

There is one file per sampling: everything at once (here), alpha spending, a confidence sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from safeguard.certify.confidence_sequence import ConfidenceSequence
from safeguard.certify.spending import Spending
from safeguard.certify.statistics import exceedance_p, lower_bound, upper_bound
from safeguard.policy.sampling import FixedSampling, Sampling, SpendingSampling


class Looks(Protocol):
    """A planned number of looks, with one-sided bounds of the rate of flagged images at any of them.

    The bounds err at one look or more with probability at most ``alpha``, each side for itself. Images whose number is
    no planned look say nothing: 0 and 1.
    """

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of images after which one looks, ascending; the last is all there are."""
        ...

    def lower(self, flagged: int, samples: int, alpha: float) -> float:
        """Lower bound of the rate."""
        ...

    def upper(self, flagged: int, samples: int, alpha: float) -> float:
        """Upper bound of the rate."""
        ...

    def exceedance_p(self, flagged: int, samples: int, limit: float) -> float:
        """P-value of "the rate is at most ``limit``" that may be read at any look."""
        ...


@dataclass(frozen=True)
class Fixed:
    """All images are drawn, then one looks: the Clopper–Pearson bounds."""

    samples: int

    @property
    def looks(self) -> tuple[int, ...]:
        """The one."""
        return (self.samples,)

    def lower(self, flagged: int, samples: int, alpha: float) -> float:
        """Lower bound of the rate; of fewer images as well, since their number does not depend on what they show."""
        return lower_bound(flagged, samples, alpha)

    def upper(self, flagged: int, samples: int, alpha: float) -> float:
        """Upper bound of the rate."""
        return upper_bound(flagged, samples, alpha)

    def exceedance_p(self, flagged: int, samples: int, limit: float) -> float:
        """P-value of "the rate is at most ``limit``"."""
        return exceedance_p(flagged, samples, limit)


def planned(sampling: Sampling, samples: int) -> Looks:
    """The looks that a policy declares, at ``samples`` images or fewer."""
    if isinstance(sampling, FixedSampling):
        return Fixed(samples)
    looks = equally_spaced(sampling.looks, samples)
    if isinstance(sampling, SpendingSampling):
        return Spending(looks, sampling.shape)
    return ConfidenceSequence(looks)


def equally_spaced(looks: int, samples: int) -> tuple[int, ...]:
    """So many looks, the last at ``samples``; fewer where there are fewer images."""
    return tuple(sorted({math.ceil(samples * (look + 1) / looks) for look in range(looks)}))
