"""RECE, Reliable and Efficient Concept Erasure (Gong et al. 2024, arXiv 2407.12383), in closed form.

UCE first. Then ``epochs`` times: find the states that still draw the concept through the edited projections W~_i (of
originals W_i, i over all keys and values of cross-attention), and erase these too. For a text state c,

    c' = argmin  sum_i |W~_i c' - W_i c|^2 + lam_r |c'|^2
       = (lam_r I + sum_i W~_i^T W~_i)^-1 (sum_i W~_i^T W_i) c                                              (regzero)

    standard:   + lam_r |c' - c|^2 instead, which adds lam_r c to the right-hand side
    surrogate:  ((1 + lam_r) sum W~^T W~)^-1 (sum W~^T W + lam_r sum W~^T W~) c

and a UCE update of the current W~ (not of the original W) with e = c', g = the anchor's state at the same position, for
all positions of the context, start and padding included. Preserved are the states UCE preserves (published: the empty
prompt, and other artists for a style).

Published settings are lam_r 0.1 and 3 epochs (nudity), 1e-3 and 1 (styles, hard objects), 0.1 and 1 (easy objects). The
default is the second. On the reference model, whose anchors are whole sentences, keys and values of weapons are 0.139
of their squared distance from the anchors' after UCE and 0.109 after it (what is preserved moves three times as far);
with the first they end at 0.60.

Published runs draw images after every epoch and keep the best by a detector; ``select`` does that with the detectors
of the policy. It is off by default, since then the result depends on the detector that later judges it.

In a policy::

    unlearner: {name: rece, regularization: regzero, lam_r: 1.0e-3, epochs: 1, start: {preserve_scale: 1.0}}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.diffusion.model import Weights
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import erase_pairs
from safeguard.unlearn.common.closed_form import System, apply_change, guided_change, originals, projections
from safeguard.unlearn.common.detection import detector_of, draw_concept, measuring_digest
from safeguard.unlearn.common.text_states import pair_moments, preserved_prompts, prompt_moment
from safeguard.unlearn.uce import UCE, UCEConfig

Regularization = Literal["regzero", "standard", "surrogate"]


class RECEConfig(MethodConfig):
    """Settings of RECE."""

    start: UCEConfig = UCEConfig()
    """The UCE edit it starts from."""
    regularization: Regularization = "regzero"
    """What keeps the adversarial states near: zero, the concept's own states, or their edited projections."""
    lam_r: PositiveFloat = 1e-3
    """Weight of that regularisation."""
    epochs: PositiveInt = 1
    """Rounds of finding and erasing adversarial states."""
    lam: PositiveFloat = 0.1
    """Weight of staying near the projection of the round before."""
    erase_scale: PositiveFloat = 1.0
    """Weight es of the adversarial states."""
    preserve_scale: Annotated[float, Field(ge=0)] = 0.1
    """Weight ps of the preserved states."""
    select: NonNegativeInt = 0
    """Images per concept drawn after UCE and after every epoch; the epoch the concepts' detectors flag least is kept
    (the earliest of equals). 0: the last epoch is kept and no image is drawn."""

    @field_validator("start")
    @classmethod
    def _erases(cls, start: UCEConfig) -> UCEConfig:
        if start.debias:
            raise ValueError("rece starts from an erasure, so its start cannot debias")
        return start


_FULL_RANK = "take regularization: regzero or standard; surrogate needs projections that together have full rank"


def adversary(
    edited: Iterable[Tensor], original: Iterable[Tensor], *, lam_r: float, regularization: Regularization = "regzero"
) -> Tensor:
    """T (d_in, d_in), float64, with c' = T c: what a state must become to act through W~ as it acted through W.

    Args:
        edited, original: W~_i and W_i in the same order, each (d_out_i, d_in).
    """
    pairs = [(new.double(), old.double()) for new, old in zip(edited, original, strict=True)]
    own = torch.stack([new.T @ new for new, _ in pairs]).sum(0)
    cross = torch.stack([new.T @ old for new, old in pairs]).sum(0)
    if regularization == "surrogate":
        return System((1 + lam_r) * own, 0.0, _FULL_RANK).divide((cross + lam_r * own).T).T
    if regularization == "standard":
        cross = cross + lam_r * torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    return System(own, lam_r, "raise lam_r").divide(cross.T).T  # A is symmetric: A^-1 B = (B^T A^-1)^T


class RECE(Unlearner):
    """UCE, then rounds against the states it missed."""

    Config: ClassVar = RECEConfig
    closed_form: ClassVar = True

    def __init__(self, config: RECEConfig, context: HardeningContext) -> None:
        self.config = config
        self.context = context
        self.data_digest = measuring_digest(context) if config.select else ""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return projections(self.context)

    @torch.no_grad()
    def edit(self) -> None:
        """UCE, the rounds, and the choice among them when one is asked for."""
        UCE(self.config.start, self.context).edit()
        best, kept = self._rate(), Weights(self.parameters())
        shift, gram = pair_moments(self.context.model, erase_pairs(self.context), "all")
        preserve = prompt_moment(self.context.model, preserved_prompts(self.context))
        for _ in range(self.config.epochs):
            self._round(shift, gram, preserve)
            rate = self._rate()
            if rate < best or not self.config.select:
                best, kept = rate, Weights(self.parameters())
        kept.restore()

    def _round(self, shift: Tensor, gram: Tensor, preserve: Tensor) -> None:
        """One round, from the moments of the concepts' own states c and guides g: sum (g - c) c^T and sum c c^T."""
        config = self.config
        transform = adversary(
            self.parameters().values(),
            originals(self.context).values(),
            lam_r=config.lam_r,
            regularization=config.regularization,
        )
        guide = shift + gram  # sum g c^T
        adversarial = transform @ gram @ transform.T
        change = guided_change(
            guide @ transform.T - adversarial,
            adversarial,
            preserve,
            lam=config.lam,
            es=config.erase_scale,
            ps=config.preserve_scale,
        )
        apply_change(self.parameters(), change)

    def _rate(self) -> float:
        """Share of the concepts' images that their detectors flag, equal seeds every time; 0 when none are drawn."""
        flagged = total = 0
        for concept in self.context.concepts if self.config.select else []:
            detector = detector_of(self.context, concept)
            images = draw_concept(self.context, concept, self.config.select, "rece")
            flagged += int((detector.scores(images, list(concept.labels)) >= detector.threshold).sum())
            total += len(images)
        return flagged / total if total else 0.0
