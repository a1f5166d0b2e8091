"""Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488): keys and values of cross-attention, and a rare word.

Trains W_k and W_v of every cross-attention and the vectors of a word before the captions, with the loss of a
regularisation set added (Section 3.2). Departures: the set is drawn from prompts that the policy declares, rather than
retrieved; images are neither flipped nor resized; weights train in place, which is the same as a copy that is used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat

from safeguard.config import FineTuningData
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import select
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.finetune.textual_inversion import TextualInversion
from safeguard.finetune.word import WordConfig


class CustomDiffusionConfig(WordConfig):
    """Settings of Custom Diffusion."""

    word: Annotated[str, Field(min_length=1)] = "ktn"
    """Word of the vocabulary whose vectors learn."""
    templates: Annotated[list[str], Field(min_length=1)] = ["{word} {caption}"]
    """Captions and prompts, of ``{word}`` and ``{caption}``."""
    prior: FineTuningData = FineTuningData(shares={"retain": 1.0})
    """The regularisation set."""
    prior_weight: NonNegativeFloat = 1.0
    """Weight of its loss."""


class _KeysValuesAndWord(TextualInversion):
    """What trains."""

    adds_parameters = False

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """All, whatever was hardened."""
        return frozenset(model.parts)

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Keys and values, and the word's rows."""
        chosen = list(select(model, "cross-attention-kv").values())
        for value in chosen:
            value.requires_grad_(True)
        return [*chosen, *super().prepare(model, parts, seed)]


class CustomDiffusion(PriorPreservation):
    """Trains keys, values and a word, beside a regularisation set."""

    Config: ClassVar = CustomDiffusionConfig
    config: CustomDiffusionConfig

    def __init__(self, config: CustomDiffusionConfig) -> None:
        super().__init__(_KeysValuesAndWord(config), config.prior, config.prior_weight)
