"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): a subject is learnt under a rare word before its name.

L = L_DM(images, "sks a cat") + weight L_DM(images of the class, their captions): the second keeps what the class looks
like (the paper's Section 3.3). What trains is another method's matter. Departures: images of the class are drawn from
prompts that the policy declares, and an image has its own caption after the word.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat

from safeguard.config import FineTuningData
from safeguard.errors import UsageFault
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.finetune.word import WordConfig
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners


class DreamBoothConfig(WordConfig):
    """Settings of DreamBooth."""

    templates: Annotated[list[str], Field(min_length=1)] = ["{word} {caption}"]
    """Captions and prompts, of ``{word}`` and ``{caption}``; ``["{caption}"]`` leaves them as they are."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """What trains."""
    prior: FineTuningData = FineTuningData(shares={"retain": 1.0})
    """Images of the class."""
    prior_weight: NonNegativeFloat = 1.0
    """Weight of their loss."""


class DreamBooth(PriorPreservation):
    """Trains what its method trains."""

    Config: ClassVar = DreamBoothConfig
    config: DreamBoothConfig

    def __init__(self, config: DreamBoothConfig) -> None:
        tuner = finetuners.make(config.method)
        if tuner.beside is not None:
            raise UsageFault(f"{config.method.name} preserves a prior itself", fix="give dreambooth another method")
        super().__init__(tuner, config.prior, config.prior_weight)
        self.config = config

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """With the word before them, then as the method has them."""
        return super().captions(self.config.captions(captions, generator), generator)

    def prompts(self, prompts: list[str]) -> list[str]:
        """With the word before them, then as the method has them."""
        return super().prompts(self.config.prompts(prompts))
