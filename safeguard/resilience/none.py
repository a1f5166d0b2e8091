"""No resilience: the unlearner alone, the baseline of every table."""

from __future__ import annotations

from typing import ClassVar

import torch

from safeguard.config import MethodConfig
from safeguard.resilience.base import Facts, Objective
from safeguard.seeds import derive
from safeguard.unlearn.base import Unlearner, Workbench


class NoConfig(MethodConfig):
    """There is nothing to set."""


class NoObjective(Objective):
    """Descends the unlearner's own loss."""

    Config: ClassVar = NoConfig

    def __init__(self, config: NoConfig, bench: Workbench, unlearner: Unlearner) -> None:
        self.bench = bench
        self.unlearner = unlearner
        self.steps = unlearner.steps
        self.learning_rate = unlearner.learning_rate

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the unlearner trains."""
        return self.unlearner.trained()

    def accumulate(self, step: int) -> Facts:
        """Erasure and preservation, one backward pass."""
        generator = torch.Generator().manual_seed(derive(self.bench.seed, "outer", step))
        erase = self.unlearner.loss(generator)
        keep = self.unlearner.preservation(generator)
        torch.autograd.backward(erase if keep is None else erase + keep)
        return {"erasure loss": erase.item()} | ({} if keep is None else {"preservation loss": keep.item()})
