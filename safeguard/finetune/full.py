"""Full fine-tuning: every parameter of the denoiser (or a named group) learns, and so do other hardened parts."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import exposed
from safeguard.finetune.base import Extent, FineTuner, PartsConfig


class FullConfig(PartsConfig):
    """Settings of full fine-tuning."""

    parameters: str = "full"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""


class FullFineTuning(FineTuner):
    """Trains the weights themselves."""

    Config: ClassVar = FullConfig
    config: FullConfig

    @property
    def extent(self) -> Extent:
        """All weights, or a group of them."""
        return "full" if self.config.parameters == "full" else "part"

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """The group's parameters, and all of the parts beside the denoiser."""
        parameters = list(exposed(model, self.config.parameters, parts).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters
