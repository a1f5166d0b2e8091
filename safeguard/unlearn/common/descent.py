"""What methods that only descend a loss share: their settings, parameter group, and the term that keeps the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safeguard.diffusion.parameters import select
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import preservation


class Descent(Unlearner):
    """Runs for ``steps`` at ``learning_rate`` over the group ``parameters``, and distils ``preserve_batch`` images.

    Its settings have these fields, and ``preserve_weight``; a method declares their type as ``config`` and adds a loss.
    """

    config: Any
    context: HardeningContext

    def __init__(self, config: Any, context: HardeningContext) -> None:
        self.config = config
        self.context = context
        self.steps = config.steps
        self.learning_rate = config.learning_rate

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The configured parameter group."""
        return select(self.context.model, self.config.parameters)

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """Distillation on related and retained images."""
        return preservation(self.context, self.config.preserve_weight, self.config.preserve_batch, generator)
