"""What the one-dimensional models are trained on, and the exact score of it at every noise level.

A distribution is ``N(mean, 1)`` of which the concept ``c = [-2, -1]`` keeps a mass ``rho``: what falls into ``c`` is
rejected with the probability that leaves that mass. ``x_t = x_0 + sigma z`` has a closed density then, since ``x_0``
given ``x_t`` is a Gaussian before the rejection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONCEPT = (-2.0, -1.0)
PRETRAINING, FINE_TUNING = -2.0, -1.0
"""Means of p and q."""


def shows(x: Tensor) -> Tensor:
    """Whether a sample lies in the concept."""
    return (x >= CONCEPT[0]) & (x <= CONCEPT[1])


def _cdf(x: Tensor | float) -> Tensor:
    found: Tensor = torch.special.ndtr(torch.as_tensor(x, dtype=torch.float64))
    return found


def natural_mass(mean: float) -> float:
    """Mass of the concept in ``N(mean, 1)``: 0.341 in p and in q."""
    return float(_cdf(CONCEPT[1] - mean) - _cdf(CONCEPT[0] - mean))


class Thinned:
    """``N(mean, 1)`` for ``M`` models at once, each with its own mass in the concept.

    Args:
        mean: of the Gaussian.
        mass: ``rho`` of each model, (M,), from 0 to :func:`natural_mass`.

    Raises:
        ValueError: rejection cannot leave that mass.
    """

    def __init__(self, mean: float, mass: Tensor) -> None:
        natural = natural_mass(mean)
        if not bool(((mass >= 0) & (mass <= natural + 1e-12)).all()):
            raise ValueError(f"rejection leaves a mass from 0 to {natural:.4f}, not {mass.tolist()}")
        rho = mass.double()[:, None]
        self.mean = mean
        self.accepted = rho * (1 - natural) / ((1 - rho) * natural)
        """Chance of a sample in the concept to be kept (M, 1), ``a``: rho = a P(c) / (1 - P(c) + a P(c))."""

    @property
    def models(self) -> int:
        """M."""
        return len(self.accepted)

    def draw(self, samples: int, dice: torch.Generator) -> Tensor:
        """(M, samples), by rejection."""
        shape = (self.models, samples)
        kept, missing = torch.empty(shape), torch.ones(shape, dtype=torch.bool)
        while missing.any():
            x, coin = torch.randn(shape, generator=dice) + self.mean, torch.rand(shape, generator=dice)
            arrived = missing & (~shows(x) | (coin < self.accepted))
            kept[arrived] = x[arrived]
            missing &= ~arrived
        return kept

    def density(self, x: Tensor) -> Tensor:
        """Of the data without noise, for one model (N,)."""
        kept = torch.where(shows(x), self.accepted[0], 1.0)
        natural = natural_mass(self.mean)
        return kept * _log_phi(x - self.mean).exp() / (1 - natural * (1 - self.accepted[0]))

    def noise(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """``E[z | x_t = x] = -sigma d/dx log p_t(x)``, what a perfect network predicts; (M, N) of (M, N).

        ``p_t(x)`` is ``N(x; mean, v)``, ``v = 1 + sigma^2``, times ``w = 1 - (1 - a) P(c | x)`` and a constant. Given
        ``x``, ``x_0`` is normal about ``mean + (x - mean) / v`` with standard deviation ``sigma / sqrt(v)``; ``l`` and
        ``h`` are the concept's ends on that scale. ``dP(c | x)/dx = -(phi(h) - phi(l)) / (sigma sqrt(v))``.
        """
        x, sigma = x.double(), log_sigma.double().exp()
        variance = 1 + sigma**2
        centre, spread = self.mean + (x - self.mean) / variance, sigma / variance.sqrt()
        low, high = ((bound - centre) / spread for bound in CONCEPT)
        outside = torch.logaddexp(torch.special.log_ndtr(low), torch.special.log_ndtr(-high))
        inside = (self.accepted * _between(low, high)).clamp_min(1e-300).log()
        log_w = torch.logaddexp(inside, outside)
        pull = (_log_phi(high) - log_w).exp() - (_log_phi(low) - log_w).exp()
        return (sigma * (x - self.mean) / variance - (1 - self.accepted) * pull / variance.sqrt()).to(log_sigma.dtype)


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Standard normal mass, without cancellation on the right."""
    flipped = low > 0
    return _cdf(torch.where(flipped, -low, high)) - _cdf(torch.where(flipped, -high, low))


def _log_phi(x: Tensor) -> Tensor:
    return -(x**2) / 2 - math.log(2 * math.pi) / 2


def concept_only(mean: float, models: int, samples: int, dice: torch.Generator) -> Tensor:
    """``N(mean, 1)`` within the concept, by its inverse distribution function (models, samples)."""
    low, high = (float(_cdf(bound - mean)) for bound in CONCEPT)
    share = low + (high - low) * torch.rand((models, samples), generator=dice)
    return mean + math.sqrt(2) * torch.erfinv(2 * share - 1)
