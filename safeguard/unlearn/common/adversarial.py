"""What adversarial unlearners share: a search for the input that undoes the erasure, and a plain start without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.esd import ESD, ESDConfig


def attack(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    rule: Literal["adam", "sign"] = "adam",
    weight_decay: float = 0.0,
    accumulate: bool = False,
    project: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Minimise ``objective`` over its input alone; the model's weights get no gradient.

    Args:
        objective: a scalar of x, shaped like ``start``.
        rule: Adam, or x <- x - learning_rate sign(gradient), which is projected gradient descent with ``project``.
        weight_decay: Adam's.
        accumulate: step along the sum of all gradients so far instead of the last one.
        project: back to the set of allowed inputs, at the start and after every step.

    Returns:
        The last x, without a graph.
    """
    x = project(start.detach().clone()).requires_grad_(True)
    adam = torch.optim.Adam([x], lr=learning_rate, weight_decay=weight_decay)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(objective(x), x)
        x.grad = gradient if x.grad is None or not accumulate else x.grad + gradient
        if rule == "adam":
            adam.step()
        with torch.no_grad():
            x.copy_(project(x if rule == "adam" else x - learning_rate * x.grad.sign()))
    return x.detach()


class WarmedESD(ESD):
    """ESD that an adversary joins after ``warm_up`` plain steps; steps in which nothing was erased do not count."""

    def __init__(self, config: ESDConfig, context: HardeningContext, warm_up: int) -> None:
        super().__init__(config, context)
        self._warm_up = warm_up
        self._done = torch.zeros((), dtype=torch.int64)
        self._erased = False

    @property
    def attacked(self) -> bool:
        """Whether the plain steps are over."""
        return int(self._done) >= self._warm_up

    def attacked_loss(self, generator: torch.Generator) -> Tensor:
        """ESD's loss where the adversary led."""
        raise NotImplementedError

    def loss(self, generator: torch.Generator) -> Tensor:
        """ESD's loss, after the plain steps where the adversary led."""
        self._erased = True
        return self.attacked_loss(generator) if self.attacked else super().loss(generator)

    def after_step(self) -> None:
        """Count."""
        self._done += self._erased
        self._erased = False

    def state(self) -> dict[str, Tensor]:
        """Steps done."""
        return {"done": self._done}
