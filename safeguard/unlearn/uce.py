"""UCE, Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761), in closed form.

For every cross-attention key and value projection W (d_out, d_in), with columns e_i (erase), g_i (guide) and p_j
(preserve):

    W' = (lam W + es sum_i (W g_i) e_i^T + ps sum_j (W p_j) p_j^T) (lam I + es sum_i e_i e_i^T + ps sum_j p_j p_j^T)^-1

the minimiser of es sum |W'e - W g|^2 + ps sum |W'p - W p|^2 + lam |W' - W|_F^2. Solved in float64. The guide of a
prompt is its anchor. Preserved are all states of the empty prompt and of the related and retained subjects' prompts.

``tokens="span"`` is the paper's code of 2023: states from the last subject token to the end of the context, paired in
order; ``"last-subject"`` is the code of 2025: one state per prompt. For the empty guide the last subject token is the
start token. All projections are edited from their original weights.

Any number of concepts of any kind is one solve.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.unlearn.base import Unlearner, Workbench
from safeguard.unlearn.common import erase_pairs
from safeguard.unlearn.common.closed_form import apply_change, guided_change, moment, projections
from safeguard.unlearn.common.text_states import pair_moments, preserved_prompts, prompt_moment


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
    kept = None if preserve is None else moment(preserve)
    shift = moment(guide.double() - erase.double(), erase)
    change = guided_change(shift, moment(erase), kept, lam=lam, es=es, ps=ps)
    return (weight.double() + weight.double() @ change).to(weight.dtype)


class UCE(Unlearner):
    """Unified concept editing."""

    Config: ClassVar = UCEConfig
    closed_form: ClassVar = True

    def __init__(self, config: UCEConfig, bench: Workbench) -> None:
        self.config = config
        self.bench = bench

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return projections(self.bench)

    def edit(self) -> None:
        """Replace every projection by its closed form."""
        config, model = self.config, self.bench.model
        shift, gram = pair_moments(model, erase_pairs(self.bench), config.tokens)
        preserve = prompt_moment(model, preserved_prompts(self.bench), last_only=config.tokens == "last-subject")
        change = guided_change(shift, gram, preserve, lam=config.lam, es=config.erase_scale, ps=config.preserve_scale)
        apply_change(self.parameters(), change)
