"""Which text states of a prompt and of its anchor are columns of a closed form.

A prompt is the token sequence start, words, end; the text encoder pads it with end (or pad) tokens to the context
length. A prompt and its anchor share the tokens before and after what differs; what differs is the *subject*:

    prompt   <s> a photo of  van gogh   in a field </s> pad ...
    anchor   <s> a photo of  a painter  in a field </s> pad ...

=============  =============================================================  ================================
positions      columns, prompt and anchor in pairs                            who
=============  =============================================================  ================================
all            every position with the same position                          RECE
span           last subject token to the end of the context                   UCE's code of 2023 (the paper's)
last-subject   the last subject token                                         UCE's code of 2025
surrounding    all but the subject                                            MACE's refinement
=============  =============================================================  ================================

Published code finds the last subject token as the last word of a prompt that is nothing but the concept; here it is the
last token that differs from the anchor, which is the same for such prompts and right for whole sentences. The subject
of the empty prompt is its start token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.policy.schema import Subject
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import kept_subjects
from safeguard.unlearn.common.closed_form import moment

Positions = Literal["all", "span", "last-subject", "surrounding"]
CHUNK = 64
"""Prompts whose states are in double precision at once."""


def encoders(model: DiffusionModel) -> dict[str, tuple[Any, Any]]:
    """Every text encoder with its tokenizer, by the encoder's name."""
    return {
        name: (encoder, getattr(model.pipeline, name.replace("text_encoder", "tokenizer")))
        for name, encoder in model.parts.items()
        if name.startswith("text_encoder")
    }


def token_ids(model: DiffusionModel, prompt: str, tokenizer: Any = None) -> list[int]:
    """Tokens of a prompt with start and end, truncated to the context; by the first tokenizer if none is given."""
    tokenizer = tokenizer or model.pipeline.tokenizer
    ids: list[int] = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return ids


def shared_ends(old: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """Lengths of the common prefix and of the common suffix of two token sequences, which never overlap."""
    shorter = min(len(old), len(new))
    before = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    after = next((i for i in range(shorter - before) if old[-1 - i] != new[-1 - i]), shorter - before)
    return before, after


def subject(old: Sequence[int], new: Sequence[int]) -> range:
    """Positions of the tokens of ``old`` that ``new`` does not share.

    Raises:
        UsageFault: there are none, so the anchor asks for the concept itself.
    """
    before, after = shared_ends(old, new)
    if before + after >= len(old):
        raise UsageFault(
            "an anchor leaves nothing to erase: the prompt has no word that its anchor lacks",
            fix="let the anchor replace the words that name the concept",
            where="concepts.anchor",
        )
    return range(before, len(old) - after)


def paired(old: Sequence[int], new: Sequence[int], context: int, which: Positions) -> tuple[list[int], list[int]]:
    """Positions of the columns in the prompt and, paired with them, in the anchor.

    Args:
        old, new: tokens of the prompt and of its anchor, start and end included.
        context: number of text states of a prompt.
    """
    if which == "all":
        return list(range(context)), list(range(context))
    before, after = shared_ends(old, new)
    last, other = subject(old, new)[-1], max(len(new) - after - 1, 0)
    if which == "last-subject":
        return [last], [other]
    if which == "span":
        count = context - max(last, other)
        return list(range(last, last + count)), list(range(other, other + count))
    count = context - max(len(old), len(new)) + after  # what follows the subject, padding included
    tails = range(len(old) - after, len(old) - after + count), range(len(new) - after, len(new) - after + count)
    return [*range(before), *tails[0]], [*range(before), *tails[1]]


def columns(model: DiffusionModel, prompt: str, anchor: str, which: Positions) -> tuple[Tensor, Tensor]:
    """States of a prompt and of its anchor as paired columns, each (d_in, n)."""
    states = model.encode_prompts([prompt, anchor]).states
    old, new = paired(token_ids(model, prompt), token_ids(model, anchor), states.shape[1], which)
    return states[0, old].T, states[1, new].T


def aligned(
    model: DiffusionModel, prompt: str, anchor: str, others: Sequence[str], which: Literal["span", "last-subject"]
) -> list[Tensor]:
    """States of a prompt from its last subject token on, and of other texts from their last token on, each (d_in, n).

    All are as long as the shortest of them (``span``), or one column each.
    """
    ids = [token_ids(model, text) for text in (prompt, *others)]
    starts = [subject(ids[0], token_ids(model, anchor))[-1], *(len(tokens) - 2 for tokens in ids[1:])]
    states = model.encode_prompts([prompt, *others]).states
    count = 1 if which == "last-subject" else states.shape[1] - max(starts)
    return [row[start : start + count].T for row, start in zip(states, starts, strict=True)]


def pair_moments(model: DiffusionModel, pairs: Sequence[tuple[str, str]], which: Positions) -> tuple[Tensor, Tensor]:
    """sum (g - x) x^T and sum x x^T over the columns of all pairs, each (d_in, d_in) in float64."""
    model.encode_prompts([text for pair in pairs for text in pair])  # all at once; each pair then finds its own
    width = model.empty.states.shape[-1]
    shift = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    gram = torch.zeros_like(shift)
    for prompt, anchor in pairs:
        x, g = columns(model, prompt, anchor, which)
        shift += moment(g.double() - x.double(), x)
        gram += moment(x)
    return shift, gram


def prompt_moment(model: DiffusionModel, prompts: Sequence[str], *, last_only: bool = False) -> Tensor:
    """sum p p^T over all states of the prompts, or over the last one before each end token; (d_in, d_in), float64."""
    width = model.empty.states.shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        states = model.encode_prompts(chunk).states
        last = [len(token_ids(model, prompt)) - 2 for prompt in chunk]
        total += moment((states[range(len(chunk)), last] if last_only else states.flatten(0, 1)).T)
    return total


def preserved_prompts(context: HardeningContext) -> list[str]:
    """The empty prompt, and all prompts of related and retained subjects, each once."""
    return list(dict.fromkeys(["", *prompts_of(kept_subjects(context))]))


def prompts_of(subjects: Sequence[Subject]) -> Iterator[str]:
    """All prompts of the subjects."""
    return (prompt for subject in subjects for prompt in subject.prompt_list)
