"""Words that stand in no vocabulary, or are still being looked for: embeddings put where tokens of a prompt are.

A prompt is read with a letter in every free place, and the embeddings of these places are replaced before the text
encoder sees them. Gradients reach the embeddings; everything else (positions, the end of the text, pooled states) is
that of a prompt of so many tokens. With several text encoders a word is its embeddings side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import TEXTS, DiffusionModel

PLACEHOLDER = "a"
"""One token in every CLIP vocabulary; it holds the place of a word."""


def embeddings(model: DiffusionModel) -> list[Any]:
    """The token embeddings of all text encoders."""
    return [part.get_input_embeddings() for name, part in model.parts.items() if name != "unet"]  # type: ignore[operator]


def token_table(model: DiffusionModel) -> Tensor:
    """The embedding of every token, (tokens, width), without gradients; of several encoders side by side."""
    found = embeddings(model)
    size = min(embedding.num_embeddings for embedding in found)
    return torch.cat([embedding.weight.detach()[:size] for embedding in found], dim=1)


@contextmanager
def _replaced(embedding: torch.nn.Module, places: Tensor, words: Tensor) -> Iterator[None]:
    """At these places (n, k) of its output (n, tokens, width) the embedding gives ``words`` (n, k, width)."""
    rows = torch.arange(len(places), device=places.device)[:, None]

    def replace(module: Any, tokens: Any, output: Tensor) -> Tensor:
        return output.index_put((rows, places), words.to(output))

    handle = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def encode_with_words(model: DiffusionModel, texts: Sequence[str], places: Tensor, words: Tensor) -> Conditioning:
    """Text states of texts some of whose tokens are replaced, with gradients where they are enabled.

    Args:
        texts: n, with :data:`PLACEHOLDER` in every free place.
        places: (n, k), which tokens these are; the start token is 0.
        words: (n, k, width) embeddings.
    """
    found, places = embeddings(model), places.to(model.device)
    parts = words.split([embedding.embedding_dim for embedding in found], dim=2)
    done = []
    for start in range(0, len(texts), TEXTS):
        rows = slice(start, start + TEXTS)
        with ExitStack() as stack:
            for embedding, part in zip(found, parts, strict=True):
                stack.enter_context(_replaced(embedding, places[rows], part[rows]))
            done.append(model.encode_anew(list(texts[rows])))
    return Conditioning.cat(done)


def encode_with_prefix(model: DiffusionModel, prompts: Sequence[str], words: Tensor) -> Conditioning:
    """Text states of prompts with soft words in front, with gradients where they are enabled.

    Args:
        words: (n, k, width) embeddings.
    """
    count = words.shape[1]
    texts = [f"{PLACEHOLDER} " * count + prompt for prompt in prompts]
    return encode_with_words(model, texts, torch.arange(1, count + 1).expand(len(texts), -1), words)
