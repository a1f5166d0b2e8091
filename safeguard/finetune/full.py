"""Full fine-tuning: every parameter of the denoiser (or a named group) learns, and so do other hardened parts."""

from __future__ import annotations

from typing import ClassVar

import torch

from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import exposed


class FullConfig(MethodConfig):
    """Settings of full fine-tuning."""

    parameters: str = "full"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""


class FullFineTuning:
    """Trains the weights themselves."""

    Config: ClassVar = FullConfig

    def __init__(self, config: FullConfig) -> None:
        self.config = config

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """The group's parameters, and those of other hardened parts, taking gradients."""
        model.freeze()
        parameters = list(exposed(model, self.config.parameters).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def detach(self, model: DiffusionModel) -> None:
        """Stop taking gradients."""
        model.freeze()
