"""Prompts with free places in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import PLACEHOLDER, encode_with_words
from safeguard.errors import UsageFault

FREE = "{}"
"""Where the free places of a template are."""


@dataclass(frozen=True)
class Places:
    """Templates as the text encoder is handed them.

    Attributes:
        texts: n, with a letter in every free place.
        places: which tokens are free, (n, k); the start token is 0.
    """

    texts: list[str]
    places: Tensor

    def encode(self, model: DiffusionModel, rows: Sequence[int], words: Tensor) -> Conditioning:
        """Text states of these templates with words (n, k, width) in their places."""
        return encode_with_words(model, [self.texts[row] for row in rows], self.places[list(rows)], words)


def placed(model: DiffusionModel, templates: Sequence[str], count: int) -> Places:
    """So many free tokens where each template has :data:`FREE`.

    Raises:
        UsageFault: the tokens of a template are not those of its two halves, or the free ones are beyond what is read.
    """
    found = [_placed(model, template, count) for template in templates]
    starts = torch.tensor([start for _, start in found])
    return Places([text for text, _ in found], starts[:, None] + torch.arange(count))


def _placed(model: DiffusionModel, template: str, count: int) -> tuple[str, int]:
    tokenizer = model.pipeline.tokenizer
    before, _, after = template.partition(FREE)
    middle = " ".join([PLACEHOLDER] * count)
    text = f"{before}{middle}{after}"
    *parts, whole = (tokenizer(each, add_special_tokens=False).input_ids for each in (before, middle, after, text))
    start = 1 + len(parts[0])
    if [token for part in parts for token in part] != whole or len(parts[1]) != count:
        raise UsageFault(
            f"the template {template!r} has {FREE} inside a word", fix="put blanks around it", where="attack.templates"
        )
    if start + count >= tokenizer.model_max_length:
        raise UsageFault(
            f"the template {template!r} has {FREE} behind the {tokenizer.model_max_length - 2} tokens that are read",
            fix="shorten it, or take fewer tokens",
            where="attack.templates",
        )
    return text, start
