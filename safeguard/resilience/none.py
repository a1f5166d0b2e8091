"""No resilience: the unlearner alone, the baseline of every table."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.resilience.base import Facts, Objective
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext, Unlearner


class NoConfig(MethodConfig):
    """There is nothing to set."""


class NoObjective(Objective):
    """Descends the unlearner's own loss."""

    Config: ClassVar = NoConfig

    def __init__(self, config: NoConfig, context: HardeningContext, unlearner: Unlearner) -> None:
        self.context = context
        self.unlearner = unlearner
        self.steps = unlearner.steps * (1 + unlearner.keeping_steps)
        self.learning_rate = unlearner.learning_rate

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the unlearner trains."""
        return self.unlearner.trained()

    def compute_gradients(self, step: int) -> Facts:
        """Erasure and preservation in one backward pass, or in turns where the unlearner says so."""
        generator = torch.Generator().manual_seed(derive(self.context.seed, "outer", step))
        turns = 1 + self.unlearner.keeping_steps
        losses: dict[str, Tensor] = {}
        if step % turns == 0:
            losses["erasure loss"] = self.unlearner.loss(generator)
        if step % turns or turns == 1:
            keep = self.unlearner.preservation(generator)
            losses |= {} if keep is None else {"preservation loss": keep}
        torch.autograd.backward(list(losses.values()))
        return {name: value.item() for name, value in losses.items()}
