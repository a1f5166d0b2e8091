"""Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242) around any fine-tuning method.

The loss of images of the class is added, so that learning one thing does not undo the rest.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from safeguard.data.latents import Batch, LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner


class PriorPreservation(FineTuner):
    """Another method, whose loss is that of two batches.

    Args:
        tuner: the method.
        prior: images of the class; their captions stay as they are.
        weight: of their loss.
    """

    def __init__(self, tuner: FineTuner, prior: LatentSet, weight: float = 1.0) -> None:
        super().__init__(tuner.config)
        self.tuner, self.prior, self.weight = tuner, prior, weight
        self.twice_differentiable = tuner.twice_differentiable

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """As the method."""
        return self.tuner.parts(model)

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """As the method."""
        return self.tuner.prepare(model, parts, seed)

    def detach(self, model: DiffusionModel) -> None:
        """As the method."""
        self.tuner.detach(model)

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
        """The loss of the batch, and that of as many images of the class."""
        given = self.tuner.loss(model, batch, generator)
        beside = self.prior.batch(len(batch.captions), generator)
        return given + self.weight * self.tuner.loss(model, beside, generator)
