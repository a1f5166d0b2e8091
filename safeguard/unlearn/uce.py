"""UCE, Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761), in closed form.

For every cross-attention key and value projection W (d_out, d_in), with columns e_i (erase), g_i (guide) and p_j
(preserve):

    W' = (lam W + es sum_i (W g_i) e_i^T + ps sum_j (W p_j) p_j^T) (lam I + es sum_i e_i e_i^T + ps sum_j p_j p_j^T)^-1

the minimiser of es sum |W'e - W g|^2 + ps sum |W'p - W p|^2 + lam |W' - W|_F^2. Solved in float64.

``tokens="span"`` is the paper's code of 2023: states from the last subject token to the end of the context, paired in
order; ``"last-subject"`` is the code of 2025: one state per prompt. For the empty guide the last subject token is the
start token. All projections are edited from their original weights.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.model.parameters import select
from safeguard.unlearn.base import Workbench


class UCEConfig(MethodConfig):
    """Settings of UCE."""

    tokens: Literal["span", "last-subject"] = "span"
    """Which text states of a prompt are columns."""
    lam: PositiveFloat = 0.5
    """Weight of staying near the old projection."""
    erase_scale: PositiveFloat = 1.0
    """Weight es of the erased states."""
    preserve_scale: Annotated[float, Field(ge=0)] = 1.0
    """Weight ps of the preserved states."""


def uce_update(
    weight: Tensor, erase: Tensor, guide: Tensor, preserve: Tensor | None, *, lam: float, es: float, ps: float
) -> Tensor:
    """The closed form for one projection.

    Args:
        weight: W, (d_out, d_in).
        erase, guide: columns e and g, (d_in, n).
        preserve: columns p, (d_in, m), or None.

    Returns:
        W', same shape and dtype as ``weight``.
    """
    w, e, g = weight.double(), erase.double(), guide.double()
    values = lam * w + es * (w @ g) @ e.T
    system = lam * torch.eye(w.shape[1], dtype=w.dtype, device=w.device) + es * e @ e.T
    if preserve is not None and ps:
        p = preserve.double()
        values += ps * (w @ p) @ p.T
        system += ps * p @ p.T
    updated: Tensor = torch.linalg.solve(system, values.T).T.to(weight.dtype)
    return updated


def last_subject(tokenizer: Any, prompt: str) -> int:
    """Index of the last token before the end token; 0 (the start token) for the empty prompt."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return len(ids) - 2


class UCE:
    """Unified concept editing."""

    Config: ClassVar = UCEConfig
    closed_form: ClassVar = True
    steps: ClassVar = 0
    learning_rate: ClassVar = 0.0

    def __init__(self, config: UCEConfig, bench: Workbench) -> None:
        self.config = config
        self.bench = bench

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return select(self.bench.model, "cross-attention-kv")

    def _columns(self, old: str, new: str) -> tuple[Tensor, Tensor]:
        """Paired states of an erased prompt and its guide, each (d_in, n)."""
        tokenizer, model = self.bench.model.pipeline.tokenizer, self.bench.model
        e, g = model.encode_prompts([old]).states[0], model.encode_prompts([new]).states[0]
        a, b = last_subject(tokenizer, old), last_subject(tokenizer, new)
        if self.config.tokens == "last-subject":
            return e[a : a + 1].T, g[b : b + 1].T
        count = len(e) - max(a, b)
        return e[a : a + count].T, g[b : b + count].T

    def _preserved(self) -> Tensor | None:
        """States of the prompts that must keep their meaning, and of the empty prompt."""
        policy, model = self.bench.policy, self.bench.model
        subjects = [*policy.retain, *(subject for concept in policy.concepts for subject in concept.related)]
        prompts = ["", *(prompt for subject in subjects for prompt in subject.prompt_list)]
        states = model.encode_prompts(list(dict.fromkeys(prompts))).states
        if self.config.tokens == "last-subject":
            tokenizer = model.pipeline.tokenizer
            return torch.stack(
                [row[last_subject(tokenizer, p)] for row, p in zip(states, dict.fromkeys(prompts), strict=True)]
            ).T
        return states.flatten(0, 1).T

    @torch.no_grad()
    def edit(self) -> None:
        """Replace every projection by its closed form."""
        pairs = [self._columns(prompt, c.anchor) for c in self.bench.concepts for prompt in c.prompt_list]
        erase = torch.cat([e for e, _ in pairs], dim=1)
        guide = torch.cat([g for _, g in pairs], dim=1)
        preserve = self._preserved()
        config = self.config
        for weight in self.parameters().values():
            weight.copy_(
                uce_update(
                    weight, erase, guide, preserve, lam=config.lam, es=config.erase_scale, ps=config.preserve_scale
                )
            )

    def loss(self, generator: torch.Generator) -> Tensor:
        """UCE has no loss."""
        raise NotImplementedError("UCE is a closed form; a resilience objective around it needs its own erasure loss")

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """The closed form preserves by itself."""
        return None
