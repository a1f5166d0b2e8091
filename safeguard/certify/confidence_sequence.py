"""A confidence sequence: bounds that hold after every image at once, so that one may stop, or go on, at any time.

For a rate ``q`` that is doubted from above, the likelihood ratio of every smaller rate ``p`` to ``q`` is a martingale
under ``q``, and a supermartingale under any larger rate. So is its mean over ``p`` uniform between 0 and ``q``,

    ``M_n(q) = (1/q) ∫_0^q (p/q)^k ((1 - p)/(1 - q))^(n - k) dp = B(k + 1, n - k + 1) I_q(k + 1, n - k + 1) / (q^(k+1)
    (1 - q)^(n - k))``,

which therefore reaches ``1/alpha`` at any time with probability at most ``alpha`` (Ville 1939): the beta-binomial
mixture of Robbins (1970, Ann. Math. Statist. 41, 1397–1409), one-sided by its uniform prior ending at ``q``; see
Howard, Ramdas, McAuliffe & Sekhon (2021, Ann. Statist. 49, 1055–1080) and Kaufmann & Koolen (2021, J. Mach. Learn. Res.
22, 246). With ``p = q u`` every ``(1 - q u)/(1 - q)`` grows with ``q``, so the rates not yet ruled out are those up to
one bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ConfidenceSequence:
    """Bounds at any number of images, looked at as often as one likes.

    Attributes:
        looks: numbers of images at which a certification looks; the bounds do not depend on them.
    """

    looks: tuple[int, ...]

    def lower(self, flagged: int, samples: int, alpha: float) -> float:
        """Lower bound of the rate: the upper bound of the rate of images that are not flagged, from 1."""
        return 1 - self.upper(samples - flagged, samples, alpha)

    def upper(self, flagged: int, samples: int, alpha: float) -> float:
        """Upper bound of the rate: the ``q`` at which ``M_n(q) = 1/alpha``; 1 where all are flagged.

        Raises:
            ValueError: the counts contradict each other or ``alpha`` is no probability.
        """
        from scipy.optimize import brentq

        if not 0 <= flagged <= samples or not 0 < alpha < 1:
            raise ValueError(f"no bound at {flagged} flagged of {samples} and alpha {alpha}")
        if flagged == samples:
            return 1.0
        enough = -math.log(alpha)
        lowest = max(flagged / samples, 1e-12)  # there no rate is likelier than q, so M is at most 1
        highest = 1 - 1e-12
        if log_martingale(flagged, samples, highest) <= enough:
            return 1.0
        return float(brentq(lambda q: log_martingale(flagged, samples, q) - enough, lowest, highest, xtol=1e-12))

    def exceedance_p(self, flagged: int, samples: int, limit: float) -> float:
        """P-value of "the rate is at most ``limit``", valid at any time: ``1/M`` of the images that are not flagged."""
        if flagged == 0 or limit >= 1:
            return 1.0
        return min(1.0, math.exp(-log_martingale(samples - flagged, samples, 1 - limit))) if limit > 0 else 0.0


def log_martingale(flagged: int, samples: int, rate: float) -> float:
    """``ln M_n(q)``: what the images say for a rate below ``q`` in (0, 1)."""
    from scipy.special import betainc, betaln

    a, b = flagged + 1, samples - flagged + 1
    below = float(betainc(a, b, rate))
    if below == 0:  # all of the mixture lies far below what was seen
        return -math.inf
    return float(betaln(a, b)) + math.log(below) - a * math.log(rate) - (b - 1) * math.log1p(-rate)
