"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA on the directions of weights, and their magnitudes beside it.

m (W + B A) / |W + B A| x, norms by row, with B = 0 and m = |W| at the start. As in the paper (Section 4.3) a gradient
takes the norm for a constant, so it is not that of the loss, and differentiating it again gives no second derivative.
A row of zeros has no direction; a model with one in an adapted layer is refused, where its answers would be no numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt

from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import PartsConfig
from safeguard.finetune.peft import PeftFineTuner


class DoRAConfig(PartsConfig):
    """Settings of DoRA."""

    rank: PositiveInt = 4
    """Rank of every update; alpha equals it."""


class DoRA(PeftFineTuner):
    """Trains B, A and m."""

    Config: ClassVar = DoRAConfig
    config: DoRAConfig
    twice_differentiable = False

    def adapter(self, targets: list[str]) -> Any:
        """Factors of the declared rank, and magnitudes."""
        from peft import LoraConfig

        rank = self.config.rank
        return LoraConfig(r=rank, lora_alpha=rank, use_dora=True, target_modules=targets)

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Add the adapters; returns their parameters.

        Raises:
            UsageFault: an adapted weight has a row of zeros.
        """
        parameters = super().prepare(model, parts, seed)
        if not all(value.all() for value in parameters if value.dim() == 1):  # m
            raise UsageFault("a layer has a row of zeros, which DoRA gives no direction", fix="take lora instead")
        return parameters
