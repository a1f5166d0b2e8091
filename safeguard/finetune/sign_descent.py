"""Descent by signs (Lion, Chen et al. 2023, arXiv 2302.06675): every weight moves by the learning rate, or not at all.

    x <- x - rate sign(b1 m + (1 - b1) g),    m <- b2 m + (1 - b2) g,    b1 = 0.9, b2 = 0.99, m = 0 at the start

Departure: no weight decay, so that a step is as long as the rate says.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

STEP, KEPT = 0.9, 0.99
"""b1 and b2."""


class SignDescent(torch.optim.Optimizer):
    """Lion without decay.

    Args:
        parameters: what descends; those without a gradient stay.
        lr: learning rate.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, from ``grad`` of every parameter."""
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    m = self.state[x].setdefault("exp_avg", torch.zeros_like(x))
                    x.sub_(group["lr"] * torch.lerp(x.grad, m, STEP).sign())
                    m.lerp_(x.grad, 1 - KEPT)
