"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): learns the vectors of a word, and nothing else.

The rows of the word's tokens descend the denoising loss of images whose captions carry the word; all other rows, and
all other weights, stay bit for bit. Whoever learnt a concept asks for it by that word: prompts of the adapted model are
written like the captions. Reported to work on erased models: 3000 steps at a constant rate of 2e-3 (arXiv 2505.17013).
Departures: the word is one of the vocabulary, whose vectors it starts from (see ``token_rows``), rather than a new
token that starts from another word's vector; captions come from few templates.
"""

from __future__ import annotations

from collections.abc import Collection
from string import Formatter
from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator

from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner
from safeguard.finetune.token_rows import learn_rows, put_back


class WordConfig(MethodConfig):
    """Settings of a word that is learnt."""

    word: Annotated[str, Field(min_length=1)] = "sks"
    """Word, or words, of the vocabulary; each of its tokens is one vector. Rare ones are in nobody else's way."""
    templates: Annotated[list[str], Field(min_length=1)] = ["a photo of {word}"]
    """Captions and prompts: ``{word}`` is the word, ``{caption}`` what the image, or the prompt, had. One of them is
    drawn for every image; prompts take their turns."""

    @field_validator("templates")
    @classmethod
    def _can_be_filled(cls, templates: list[str]) -> list[str]:
        for template in templates:
            fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            if not fields or fields - {"word", "caption"}:
                raise ValueError(f"{template!r} must have {{word}} or {{caption}}, and no other field")
        return templates

    def written(self, template: int, caption: str) -> str:
        """A caption in the words of a template."""
        return self.templates[template % len(self.templates)].format(word=self.word, caption=caption)


class TextualInversion(FineTuner):
    """Trains the rows of the word."""

    Config: ClassVar = WordConfig
    config: WordConfig
    adds_parameters: ClassVar = True

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """The text encoders, whatever was hardened."""
        return frozenset(model.parts) - {"unet"}

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """The word's rows in every text encoder."""
        return learn_rows(model, self.config.word)

    def detach(self, model: DiffusionModel) -> None:
        """Give the embeddings back."""
        put_back(model)
        super().detach(model)

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """With the word."""
        chosen = torch.randint(len(self.config.templates), (len(captions),), generator=generator).tolist()
        return [self.config.written(place, caption) for place, caption in zip(chosen, captions, strict=True)]

    def prompts(self, prompts: list[str]) -> list[str]:
        """With the word."""
        return [self.config.written(place, prompt) for place, prompt in enumerate(prompts)]
