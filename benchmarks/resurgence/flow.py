"""The probability-flow ODE: samples, log-likelihoods, and the mass of an interval without drawing anything.

``dx = -g^2/2 score dt`` is ``dx = noise d sigma``, since ``d sigma^2 = g^2 dt`` and ``noise = -sigma score``: the ODE
is solved over ``u = ln sigma`` with the classical Runge–Kutta steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.resurgence.data import CONCEPT, PRETRAINING
from benchmarks.resurgence.network import HIGH, LOW, Noise

STEPS = 200
PRIOR_MEAN, PRIOR_DEVIATION = PRETRAINING, math.sqrt(1 + math.exp(2 * HIGH))
"""Where drawing begins: exactly what the SDE makes of p."""


def _solved(speed: Callable[[Tensor, float], Tensor], y: Tensor, start: float, end: float, steps: int) -> Tensor:
    """``dy/du = speed(y, u)`` from ``start`` to ``end`` by Runge–Kutta of order 4."""
    h = (end - start) / steps
    for i in range(steps):
        u = start + i * h
        k1 = speed(y, u)
        k2 = speed(y + h / 2 * k1, u + h / 2)
        k3 = speed(y + h / 2 * k2, u + h / 2)
        k4 = speed(y + h * k3, u + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


@torch.no_grad()
def _moved(noise: Noise, x: Tensor, start: float, end: float, steps: int) -> Tensor:
    return _solved(lambda x, u: math.exp(u) * noise(x, torch.full_like(x, u)), x, start, end, steps)


def draw(noise: Noise, models: int, samples: int, dice: torch.Generator, steps: int = STEPS) -> Tensor:
    """Samples of every model (M, samples)."""
    start = PRIOR_MEAN + PRIOR_DEVIATION * torch.randn((models, samples), generator=dice)
    return _moved(noise, start, HIGH, LOW, steps)


def mass(noise: Noise, models: int, steps: int = STEPS) -> Tensor:
    """Chance of a sample of :func:`draw` to lie in the concept (M,).

    In one dimension the flow keeps the order of points, so that what ends between the concept's ends is what begins
    between the points from which these come.
    """
    ends = _moved(noise, torch.tensor(CONCEPT).expand(models, 2), LOW, HIGH, steps)
    share: Tensor = torch.special.ndtr((ends.double() - PRIOR_MEAN) / PRIOR_DEVIATION)
    return share[:, 1] - share[:, 0]


def log_likelihood(noise: Noise, x: Tensor, steps: int = STEPS) -> Tensor:
    """``log p(x)`` in nats (M, N): that of the prior where x comes from, and the integral of the speed's divergence."""

    def speed(state: Tensor, u: float) -> Tensor:
        with torch.enable_grad():
            at = state[0].detach().requires_grad_()
            velocity = math.exp(u) * noise(at, torch.full_like(at, u))
            (divergence,) = torch.autograd.grad(velocity.sum(), at)
        return torch.stack([velocity.detach(), divergence])

    final = _solved(speed, torch.stack([x, torch.zeros_like(x)]), LOW, HIGH, steps)
    z = (final[0] - PRIOR_MEAN) / PRIOR_DEVIATION
    return final[1] - z**2 / 2 - math.log(PRIOR_DEVIATION * math.sqrt(2 * math.pi))


def concept_likelihood(noise: Noise, models: int, steps: int = STEPS) -> Tensor:
    """Mean of ``log p`` at five equispaced points of the concept, its ends included (M,)."""
    return log_likelihood(noise, torch.linspace(*CONCEPT, 5).expand(models, 5), steps).mean(dim=1)
