"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): learns the vectors of a word, and nothing else.

The rows of the word's tokens descend the denoising loss of images whose captions carry the word; all other rows, and
all other weights, stay bit for bit. Whoever learnt a concept asks for it by that word: prompts of the adapted model are
written like the captions. Reported to work on erased models: 3000 steps at a constant rate of 2e-3 (arXiv 2505.17013).
Departures: the word is one of the vocabulary, whose vectors it starts from (see ``token_rows``), rather than a new
token that starts from another word's vector; captions come from few templates.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Extent, FineTuner
from safeguard.finetune.token_rows import keep_rows, learn_rows, put_back
from safeguard.finetune.word import WordConfig


class TextualInversion(FineTuner):
    """Trains the rows of the word."""

    Config: ClassVar = WordConfig
    config: WordConfig
    adds_parameters = True

    @property
    def extent(self) -> Extent:
        """Some vectors."""
        return "part"

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """The text encoders, whatever was hardened."""
        return frozenset(model.parts) - {"unet"}

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """The word's rows in every text encoder."""
        return learn_rows(model, self.config.word)

    def merge(self, model: DiffusionModel) -> None:
        """The word's rows into the embeddings."""
        keep_rows(model)

    def detach(self, model: DiffusionModel) -> None:
        """Give the embeddings back."""
        put_back(model)
        super().detach(model)

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """With the word."""
        return self.config.captions(captions, generator)

    def prompts(self, prompts: list[str]) -> list[str]:
        """With the word."""
        return self.config.prompts(prompts)
