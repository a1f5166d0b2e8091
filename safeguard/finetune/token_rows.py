"""Rows of a token embedding that learn beside the frozen rest: what textual inversion and custom diffusion share.

A new token would need a larger vocabulary, and CLIP encoders of old configurations read the text's end where the
largest token id is, which would then be the new token's. A placeholder is a word of the vocabulary instead, a rare one,
whose rows are replaced while the method is attached; each of its tokens is one learnt vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault


class LearntRows(nn.Embedding):
    """An embedding that looks some of its tokens up in ``rows``; it shares the frozen weight of the one it stands for.

    Args:
        frozen: the embedding, (tokens, width).
        tokens: ids of the tokens whose rows learn; they start as they are.

    Attributes:
        rows: (learnt tokens, width).
    """

    tokens: Tensor

    def __init__(self, frozen: nn.Embedding, tokens: list[int]) -> None:
        super().__init__(frozen.num_embeddings, frozen.embedding_dim, _weight=frozen.weight)
        self.weight = frozen.weight
        self.frozen = [frozen]  # in a list, so that it is no part of the model
        self.register_buffer("tokens", torch.tensor(tokens, device=frozen.weight.device), persistent=False)
        self.rows = nn.Parameter(frozen.weight.detach()[self.tokens].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (…, width) of ids (…)."""
        own = ids[..., None] == self.tokens
        learnt = self.rows[own.int().argmax(-1)]
        return torch.where(own.any(-1, keepdim=True), learnt, super().forward(ids))


def learn_rows(model: DiffusionModel, word: str) -> list[nn.Parameter]:
    """Let the rows of a word's tokens learn in every text encoder; returns them.

    Raises:
        UsageFault: a tokenizer reads nothing in the word.
    """
    model.forget_texts()
    found = []
    for part, tokenizer in _tokenizers(model).items():
        encoder: Any = model.parts[part]
        ids: list[int] = list(dict.fromkeys(tokenizer(word, add_special_tokens=False).input_ids))
        if not ids:
            raise UsageFault(f"the word {word!r} has no token to learn", fix="take another, such as 'sks'")
        learning = LearntRows(encoder.get_input_embeddings(), ids)
        encoder.set_input_embeddings(learning)
        found.append(learning.rows)
    return found


@torch.no_grad()
def keep_rows(model: DiffusionModel) -> None:
    """Write what was learnt into every text encoder's own embedding."""
    for part in _tokenizers(model):
        encoder: Any = model.parts[part]
        learnt = encoder.get_input_embeddings()
        if isinstance(learnt, LearntRows):
            learnt.frozen[0].weight[learnt.tokens] = learnt.rows


def put_back(model: DiffusionModel) -> None:
    """Give every text encoder its own embedding back."""
    for part in _tokenizers(model):
        encoder: Any = model.parts[part]
        learnt = encoder.get_input_embeddings()
        if isinstance(learnt, LearntRows):
            encoder.set_input_embeddings(learnt.frozen[0])
            model.forget_texts()


def _tokenizers(model: DiffusionModel) -> dict[str, Any]:
    """Text encoder -> its tokenizer."""
    names = [part for part in model.parts if part.startswith("text_encoder")]
    return {part: getattr(model.pipeline, part.replace("text_encoder", "tokenizer")) for part in names}
