"""Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242) around any fine-tuning method.

The loss of images of the class is added, so that learning one thing does not undo the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.config import FineTuningData
from safeguard.data.latents import Batch, LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner
from safeguard.finetune.wrapper import Wrapper


class PriorPreservation(Wrapper):
    """Another method, whose loss is that of two batches.

    Args:
        tuner: the method.
        prior: images of the class, whose captions stay as they are; or what they are, to be handed over.
        weight: of their loss.
    """

    def __init__(self, tuner: FineTuner, prior: LatentSet | FineTuningData, weight: float = 1.0) -> None:
        super().__init__(tuner)
        self.weight = weight
        self.beside = prior if isinstance(prior, FineTuningData) else None
        self.prior = prior if isinstance(prior, LatentSet) else None

    def preserve(self, images: LatentSet) -> None:
        """Take the images of the class."""
        self.prior = images

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of the batch, and that of as many images of the class.

        Raises:
            UsageFault: nobody handed them over.
        """
        if self.prior is None:
            raise UsageFault(
                "prior preservation has no images of the class", fix="hand those of `beside` to preserve()"
            )
        given = self.tuner.loss(model, batch, generator)
        beside = self.prior.batch(len(batch.captions), generator)
        return given + self.weight * self.tuner.loss(model, beside, generator)
