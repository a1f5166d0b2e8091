"""Training, unlearning and fine-tuning of the one-dimensional models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.resurgence.data import FINE_TUNING, PRETRAINING, Thinned, concept_only
from benchmarks.resurgence.network import HIGH, LOW, Networks

BATCH = 256

Loss = Callable[[Networks], Tensor]
"""Of one step, by model (M,)."""


def denoising(networks: Networks, clean: Tensor, dice: torch.Generator) -> Tensor:
    """``E |noise(x_0 + sigma z) - z|^2`` by model (M,), with ``ln sigma`` uniform.

    Times ``HIGH - LOW`` it bounds the negative log-likelihood up to a constant: uniform in ``ln sigma`` is what a
    weight of ``g^2`` makes of it.
    """
    noisy, log_sigma, z = _noised(clean, dice)
    predicted: Tensor = networks(noisy, log_sigma)
    return ((predicted - z) ** 2).mean(dim=1)


def _noised(clean: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    log_sigma = LOW + (HIGH - LOW) * torch.rand(clean.shape, generator=dice)
    z = torch.randn(clean.shape, generator=dice)
    return clean + log_sigma.exp() * z, log_sigma, z


def _descend(networks: Networks, loss: Loss, steps: int, rate: float) -> Networks:
    """Adam with a rate that falls to zero; every model follows its own loss."""
    optimizer = torch.optim.Adam(networks.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(networks).sum().backward()
        optimizer.step()
        schedule.step()
    return networks


def train(mass: Tensor, dice: torch.Generator, steps: int = 3000, rate: float = 4e-3) -> Networks:
    """Exact unlearning: a model per ``rho`` (M,), trained on p of which the concept never had more."""
    data = Thinned(PRETRAINING, mass)
    networks = Networks(len(mass), dice)
    return _descend(networks, lambda n: denoising(n, data.draw(BATCH, dice), dice), steps, rate)


def unlearn(
    trained: Networks, weight: Tensor, dice: torch.Generator, steps: int = 1000, rate: float = 1e-3
) -> Networks:
    """Approximate unlearning: gradient ascent on the concept beside descent on p without it.

    Args:
        trained: on all of p; left as it is.
        weight: of the ascent, by model (M,); 0 forgets by training on what is retained alone.
    """
    models = len(weight)
    retained = Thinned(PRETRAINING, torch.zeros(models))

    def loss(networks: Networks) -> Tensor:
        forgotten = denoising(networks, concept_only(PRETRAINING, models, BATCH, dice), dice)
        return denoising(networks, retained.draw(BATCH, dice), dice) - weight * forgotten

    return _descend(copy.deepcopy(trained), loss, steps, rate)


def fine_tune(
    start: Networks,
    penalty: float,
    dice: torch.Generator,
    steps: int = 300,
    rate: float = 1e-3,
    images: int | None = None,
) -> Networks:
    """What a downstream user does: training on q without the concept, held near the start.

    Args:
        start: left as it is.
        penalty: weight of KL(tuned | start) of the two reverse processes, which is ``HIGH - LOW`` times the mean
            squared difference of their predicted noise (Girsanov), taken where the noised data lie.
        images: samples of q that each model is tuned on, its own ones; none: new ones at every step.
    """
    models = len(start.weights[0])
    data = Thinned(FINE_TUNING, torch.zeros(models))
    owned = None if images is None else data.draw(images, dice)

    def batch() -> Tensor:
        if owned is None:
            return data.draw(BATCH, dice)
        return owned.gather(1, torch.randint(owned.shape[1], (models, BATCH), generator=dice))

    def loss(networks: Networks) -> Tensor:
        noisy, log_sigma, z = _noised(batch(), dice)
        predicted: Tensor = networks(noisy, log_sigma)
        with torch.no_grad():
            before = start(noisy, log_sigma)
        pulled: Tensor = (predicted - z) ** 2 + penalty * (predicted - before) ** 2
        return pulled.mean(dim=1)

    return _descend(copy.deepcopy(start), loss, steps, rate)
