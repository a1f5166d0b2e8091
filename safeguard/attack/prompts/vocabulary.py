"""The words that a search for prompts may use: those a reader could type, and the content filter lets stand alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeguard.data.content_filter import content, is_allowed
from safeguard.data.screening import surroundings
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import token_table
from safeguard.errors import ModelFault, UsageFault
from safeguard.policy.schema import Concept


@dataclass(frozen=True)
class Vocabulary:
    """Candidates, in the order of their tokens.

    Every candidate is one whole word of letters and digits, so that words with blanks between them are read as exactly
    these tokens: what a search finds can be typed.

    Attributes:
        words: v of them.
        ids: token of each (v,).
        table: embedding of each (v, width), of several text encoders side by side.
    """

    words: list[str]
    ids: Tensor
    table: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def text(self, chosen: Sequence[int] | Tensor) -> str:
        """The words at these places of the vocabulary, with blanks between."""
        return " ".join(self.words[int(place)] for place in chosen)

    def without(self, words: Collection[str]) -> Vocabulary:
        """The other words.

        Raises:
            UsageFault: there are none.
        """
        kept = [place for place, word in enumerate(self.words) if word not in words]
        if not kept:
            raise UsageFault("no word is left that may be tried", fix="leave this probe out")
        return Vocabulary([self.words[place] for place in kept], self.ids[kept], self.table[kept])


def vocabulary(model: DiffusionModel, concepts: Sequence[Concept], count: int = 1) -> Vocabulary:
    """The words of a model's tokenizer, for prompts with so many of them.

    What speaks of minors is never a candidate, nor what the content filter refuses beside the concepts; texts put
    together of the others are judged again.

    Raises:
        UsageFault: the model reads fewer.
        ModelFault: the tokenizers have no such word, or two text encoders number theirs differently.
    """
    tokenizer, table = model.pipeline.tokenizer, token_table(model)
    if (most := tokenizer.model_max_length - 2) < count:
        raise UsageFault(
            f"the model reads {most} tokens of a prompt, and {count} words are to be looked for",
            fix=f"take {most} or fewer",
            where="attack.tokens",
        )
    other = getattr(model.pipeline, "tokenizer_2", None)
    if other is not None and other.get_vocab() != tokenizer.get_vocab():
        raise ModelFault(
            "the two text encoders read different vocabularies, so no word is one token in both",
            fix="leave this probe out",
        )
    beside = surroundings(concepts)
    found = {
        word: token
        for word, token in typed_words(tokenizer).items()
        if token < len(table) and not content(word).minor and is_allowed(f"{beside} {word}")
    }
    if not found:
        raise ModelFault("the tokenizer has no whole word that may be used", fix="leave this probe out")
    ids = torch.tensor(list(found.values()), device=table.device)
    return Vocabulary(list(found), ids, table[ids].float())


def typed_words(tokenizer: Any) -> dict[str, int]:
    """Words of letters and digits that are one token, and that token, ascending."""
    special = set(tokenizer.all_special_ids)
    tokens = [token for token in sorted(tokenizer.get_vocab().values()) if token not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[token] for token in tokens])]
    words = {text: token for text, token in zip(texts, tokens, strict=True) if text.isalnum()}
    read = tokenizer(list(words), add_special_tokens=False).input_ids if words else []
    return {word: token for (word, token), ids in zip(words.items(), read, strict=True) if ids == [token]}
