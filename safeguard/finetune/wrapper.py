"""A fine-tuning method around another one: it does what the other does, but for what it says itself."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from safeguard.data.latents import Batch, LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Extent, FineTuner


class Wrapper(FineTuner):
    """What trains as another method does, usually with another loss.

    Args:
        tuner: the other method.
    """

    def __init__(self, tuner: FineTuner) -> None:
        super().__init__(tuner.config)
        self.tuner = tuner
        self.twice_differentiable, self.adds_parameters = tuner.twice_differentiable, tuner.adds_parameters
        self.beside = tuner.beside

    def preserve(self, images: LatentSet) -> None:
        """As the method."""
        self.tuner.preserve(images)

    @property
    def extent(self) -> Extent:
        """As the method."""
        return self.tuner.extent

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """As the method."""
        return self.tuner.attach(model, seed)

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """As the method."""
        return self.tuner.parts(model)

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """As the method."""
        return self.tuner.prepare(model, parts, seed)

    def detach(self, model: DiffusionModel) -> None:
        """As the method."""
        self.tuner.detach(model)

    @property
    def in_weights(self) -> bool:
        """As the method."""
        return self.tuner.in_weights

    def merge(self, model: DiffusionModel) -> None:
        """As the method."""
        self.tuner.merge(model)

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """As the method."""
        return self.tuner.captions(captions, generator)

    def prompts(self, prompts: list[str]) -> list[str]:
        """As the method."""
        return self.tuner.prompts(prompts)

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """As the method."""
        return self.tuner.loss(model, batch, generator)
