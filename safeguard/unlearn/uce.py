"""UCE, Unified Concept Editing (Gandikota et al. 2024, arXiv 2308.14761), in closed form.

For every cross-attention key and value projection W (d_out, d_in), with columns e_i (erase), g_i (guide) and p_j
(preserve):

    W' = (lam W + es sum_i (W g_i) e_i^T + ps sum_j (W p_j) p_j^T) (lam I + es sum_i e_i e_i^T + ps sum_j p_j p_j^T)^-1

the minimiser of es sum |W'e - W g|^2 + ps sum |W'p - W p|^2 + lam |W' - W|_F^2. Solved in float64. The guide of a
prompt is its anchor. Preserved are the states of the empty prompt and of the related and retained subjects' prompts:
all of them, or with ``last-subject`` the last of each. The code of 2023 sets ps to 1/#p, at least 0.1; here it is an
option.

``tokens="span"`` is the paper's code of 2023: states from the last subject token to the end of the context, paired in
order; ``"last-subject"`` is the code of 2025: one state per prompt. For the empty guide the last subject token is the
start token. All projections are edited from their original weights.

Any number of concepts of any kind is one solve. What it can give is limited by the width of the text states: on the
reference model (128) a hundred names, and twenty to keep, reach their goals exactly with ``last-subject`` and a small
``lam``; with ``span``, thousands of columns, the names end at 0.27 of their distance from the anchor while 44 kept ones
move by 0.40 of their length. For a style let the anchor keep the object::

    concepts:
      - name: fluent-3d
        kind: style
        prompts: {template: "{name} emoji in fluent 3d style", fill: {name: [a cat, a rose]}}
        anchor: "{name} emoji in noto style"
        ...
    harden:
      unlearner: {name: uce, tokens: span, preserve_scale: 1.0}

*Debiasing* (``debias``) removes nothing: every prompt of the concepts is led towards attributes with columns d_k, in
weights s_k that are learnt from images,

    W e_i  becomes  W (e_i + sum_k s_k d_k),          s_k <- s_k + step (ratio_k - share of images that show k),

where an image shows the attribute whose labels the concept's detector scores highest. A concept within ``tolerance`` of
its ratios rests; the round that came nearest is kept. Each round edits the original weights, so that the result is one
closed form of the last s. In the released code the step is always 1, whatever its option says; here a concept's step is
halved whenever it overshot, without which the shares of two drinks on the reference model swing for ever between 0.05
and 0.95. The concept's anchor only tells which words name it. Such a model is not erased, so a certification, which
asks whether the concept is gone, has nothing to say about it::

    concepts:
      - {name: doctors, kind: identity, prompts: [a photo of a doctor], anchor: a photo, detector: {...}}
    harden:
      unlearner:
        name: uce
        debias:
          attributes: [{prompt: a woman, labels: [woman]}, {prompt: a man, labels: [man]}]
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.diffusion.model import Weights
from safeguard.errors import UsageFault
from safeguard.policy.schema import Concept
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import erase_pairs
from safeguard.unlearn.common.closed_form import apply_change, guided_change, moment, projections
from safeguard.unlearn.common.detection import detector_of, draw_concept, measuring_digest
from safeguard.unlearn.common.text_states import aligned, pair_moments, preserved_prompts, prompt_moment


class Attribute(MethodConfig):
    """One of the looks a concept may have."""

    prompt: Annotated[str, Field(min_length=1)]
    """What asks for it: ``a woman``."""
    labels: list[str] = []
    """What the concept's detector calls it."""
    ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Wanted share of the concept's images; none: the same share for all."""
    weight: float = 0.0
    """s_k before the first round."""


class DebiasConfig(MethodConfig):
    """Settings of debiasing."""

    attributes: Annotated[list[Attribute], Field(min_length=2)]
    """What is to be balanced, the same for all concepts."""
    rounds: NonNegativeInt = 30
    """Most rounds of measuring and editing; 0: one edit with the weights as given, and no image is drawn."""
    images: PositiveInt = 10
    """Images per concept and round, of the same seeds every time, sampled as certification does."""
    tolerance: PositiveFloat = 0.05
    """Distance from the wanted shares that is good enough."""
    step: PositiveFloat = 1.0
    """How much of the missing share is added to a weight at first."""

    @property
    def ratios(self) -> list[float]:
        """The wanted shares."""
        return [1 / len(self.attributes) if one.ratio is None else one.ratio for one in self.attributes]

    @model_validator(mode="after")
    def _can_be_measured(self) -> DebiasConfig:
        given = [one.ratio is not None for one in self.attributes]
        if any(given) and not all(given):
            raise ValueError("give a ratio for all attributes, or for none")
        if abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"the ratios add up to {sum(self.ratios):g} instead of 1")
        if self.rounds and not all(one.labels for one in self.attributes):
            raise ValueError("every attribute needs labels, by which its share is measured; or set rounds to 0")
        return self


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
    debias: DebiasConfig | None = None
    """Balance attributes instead of erasing."""


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

    def __init__(self, config: UCEConfig, context: HardeningContext) -> None:
        self.config = config
        self.context = context
        self.data_digest = measuring_digest(context) if config.debias and config.debias.rounds else ""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return projections(self.context)

    def edit(self) -> None:
        """Replace every projection by its closed form."""
        if self.config.debias:
            self._balance(self.config.debias)
            return
        shift, gram = pair_moments(self.context.model, erase_pairs(self.context), self.config.tokens)
        self._apply(shift, gram, self._preserve())

    def _preserve(self) -> Tensor:
        last_only = self.config.tokens == "last-subject"
        return prompt_moment(self.context.model, preserved_prompts(self.context), last_only=last_only)

    def _apply(self, shift: Tensor, gram: Tensor, preserve: Tensor) -> None:
        config = self.config
        change = guided_change(shift, gram, preserve, lam=config.lam, es=config.erase_scale, ps=config.preserve_scale)
        apply_change(self.parameters(), change)

    # -- debiasing --------------------------------------------------------------------------------------------------

    def _balance(self, debias: DebiasConfig) -> None:
        """Rounds of editing the original projections, measuring, and shifting the weights."""
        context, untouched = self.context, Weights(self.parameters())
        columns, preserve = self._columns(debias), self._preserve()
        gram = torch.stack([moment(own) for _, own, _ in columns]).sum(0)

        def edit(weights: Tensor) -> None:
            untouched.restore()
            pulls = [(torch.einsum("k,kan->an", weights[row].to(led), led), own) for row, own, led in columns]
            self._apply(torch.stack([moment(pull, own) for pull, own in pulls]).sum(0), gram, preserve)

        weights = torch.tensor([[one.weight for one in debias.attributes]] * len(context.concepts), dtype=torch.float64)
        edit(weights)
        best, kept, shares = float("inf"), weights, torch.zeros_like(weights)
        step, before = torch.full((len(weights), 1), debias.step, dtype=torch.float64), torch.zeros_like(weights)
        for turn in range(debias.rounds + 1 if debias.rounds else 0):
            found = torch.stack([self._shares(concept, debias) for concept in context.concepts])
            missing = torch.tensor(debias.ratios, dtype=torch.float64) - found
            distance = missing.abs().amax(1, keepdim=True)
            if distance.max() < best:
                best, kept, shares = float(distance.max()), weights, found
            if best <= debias.tolerance or turn == debias.rounds:
                break
            step = torch.where((missing * before).sum(1, keepdim=True) < 0, step / 2, step)
            weights, before = weights + step * missing * (distance > debias.tolerance), missing
            edit(weights)
        if kept is not weights:
            edit(kept)
        if debias.rounds:
            for concept, row in zip(context.concepts, shares.tolist(), strict=True):
                found_of = [f"{one.prompt} {share:.2f}" for one, share in zip(debias.attributes, row, strict=True)]
                context.progress.note(f"{concept.name}: {', '.join(found_of)} of {debias.images} images")

    def _columns(self, debias: DebiasConfig) -> list[tuple[int, Tensor, Tensor]]:
        """Of every prompt: its concept's number, e (d_in, n), and d_k of all attributes (k, d_in, n)."""
        attributes, found = [one.prompt for one in debias.attributes], []
        for row, concept in enumerate(self.context.concepts):
            for prompt, anchor in zip(concept.prompt_list, concept.anchor_list, strict=True):
                own, *led = aligned(self.context.model, prompt, anchor, attributes, self.config.tokens)
                found.append((row, own.double(), torch.stack(led).double()))
        return found

    def _shares(self, concept: Concept, debias: DebiasConfig) -> Tensor:
        """Share of the concept's images that show each attribute, (k,)."""
        images = draw_concept(self.context, concept, debias.images, "debias")
        detector = detector_of(self.context, concept)
        scores = np.stack([detector.scores(images, list(one.labels)) for one in debias.attributes], axis=1)
        seen = scores.max(axis=1) > 0
        if not seen.any():
            raise UsageFault(
                f"the detector sees none of the attributes in any of {len(images)} images of {concept.name!r}",
                fix="give the attributes labels that it knows, or draw more images",
                where="harden.unlearner.debias",
            )
        counts = np.bincount(scores[seen].argmax(axis=1), minlength=len(debias.attributes))
        return torch.from_numpy(counts / seen.sum())
