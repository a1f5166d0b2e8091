"""A word under which something is learnt, and by which one asks for it afterwards."""

from __future__ import annotations

from string import Formatter
from typing import Annotated

import torch
from pydantic import Field, field_validator

from safeguard.config import MethodConfig


class WordConfig(MethodConfig):
    """Settings of a method that learns under a word."""

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

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """Each in the words of a template that the generator draws."""
        chosen = torch.randint(len(self.templates), (len(captions),), generator=generator).tolist()
        return [self._written(place, caption) for place, caption in zip(chosen, captions, strict=True)]

    def prompts(self, prompts: list[str]) -> list[str]:
        """Each in the words of the next template."""
        return [self._written(place, prompt) for place, prompt in enumerate(prompts)]

    def _written(self, template: int, caption: str) -> str:
        return self.templates[template % len(self.templates)].format(word=self.word, caption=caption)
