"""Receler, reliable concept erasing with lightweight erasers (Huang et al. 2023, arXiv 2311.17717).

All weights stay as they are; after every cross-attention an *eraser* E of rank 128 learns (h becomes h + E(h),
:mod:`safeguard.diffusion.erasers`). With eps_E the model with erasers, eps_* without, and vectors p that an adversary
writes over the text states behind the concept's tokens:

    p    = argmin  mean (eps_E(x_t, [c, p]) - eps_*(x_t, c))^2
    loss = mean (eps_E(x_t, [c, p]) - target)^2  +  locality x mean_l R_l                target: ESD's (its Eq. 7)
    R_l  = sum_pixels (1 - M) mean_channels E_l(h)^2 / sum_pixels (1 - M)

M is where the concept is: the base model's cross-attention to the prompt's tokens, averaged over heads, tokens and all
layers of a quarter of the latent's side (16 x 16 in Stable Diffusion 1.x), scaled to [0, 1], at least ``threshold``.

``variant="gelu"`` is the paper's eraser. It cannot be folded into a weight, so it has to be stored beside them, and
whoever opens the directory with anything but this package has the untouched model: such a directory is not what was
certified. The default is therefore ``linear``, the same eraser without the activation. It is folded exactly into the
output projection of its attention, W -> W + U D W, when hardening is done: the result is a plain model in which nothing
can be left out. Fine-tunes train folded erasers as weights, and stored ones along with the denoiser.

p is kept from step to step, one set per concept (``keep_adversary``), and is part of the checkpoint. The released code
shares its partially denoised latents with old ESD: timesteps 39 to 58 too noisy, which is not repeated; its option for
the step at which the adversary starts has no effect there and does not exist here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isqrt
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.erasers import attach, cross_attentions, erasers
from safeguard.diffusion.micro_batches import whole_batches
from safeguard.diffusion.model import DiffusionModel
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.adversarial import attack
from safeguard.unlearn.common.attention import widened
from safeguard.unlearn.common.text_states import token_ids
from safeguard.unlearn.common.trajectories import Drawn
from safeguard.unlearn.esd import ESD, ESDConfig


class RecelerConfig(ESDConfig):
    """Settings of Receler: those of ESD, and the erasers' and the adversary's."""

    variant: Literal["linear", "gelu"] = "linear"  # type: ignore[assignment]
    """The erasers' activation: none, folded into the weights; or GELU (the paper), stored beside them."""
    steps: PositiveInt = 500
    """Optimiser steps."""
    learning_rate: PositiveFloat = 3e-4
    """Adam's learning rate."""
    rank: PositiveInt = 128
    """Width of the erasers' inner layer."""
    locality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of what erasers do away from the concept."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Scaled attention from which a pixel counts as the concept's."""
    adversarial_tokens: PositiveInt = 16
    """Text states the adversary writes, as far as the context reaches."""
    attack_steps: NonNegativeInt = 50
    """Steps of the attack; 0: no adversary."""
    attack_learning_rate: PositiveFloat = 0.1
    """Its learning rate (Adam)."""
    attack_weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Its weight decay."""
    keep_adversary: bool = True
    """Whether each attack starts where the last one ended, or anew."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps, each with an attack of two."""
        return cls(steps=4, learning_rate=1e-2, batch_size=2, trajectory_steps=3, pool=2, rank=2, attack_steps=2)


def write_behind(states: Tensor, vectors: Tensor, starts: list[int]) -> Tensor:
    """Text states (n, tokens, width) with ``vectors`` (n, k, width) from each row's position on, cut at the end."""
    rows = []
    for row, found, start in zip(states, vectors, starts, strict=True):
        written = found[: len(row) - start]
        rows.append(torch.cat([row[:start], written, row[start + len(written) :]]))
    return torch.stack(rows)


@contextmanager
def attention_maps(model: DiffusionModel) -> Iterator[list[Tensor]]:
    """Meanwhile every cross-attention adds its probabilities to the list, mean over heads, (n, pixels, tokens)."""
    found: list[Tensor] = []

    def look(attention: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        query = attention.head_to_batch_dim(attention.to_q(inputs[0]))
        key = attention.head_to_batch_dim(attention.to_k(options["encoder_hidden_states"]))
        weights = attention.get_attention_scores(query, key)
        found.append(weights.unflatten(0, (-1, attention.heads)).mean(1))

    layers = cross_attentions(model.unet).values()
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        with whole_batches():
            yield found
    finally:
        for handle in handles:
            handle.remove()


def concept_mask(maps: list[Tensor], lengths: list[int], side: int, threshold: float) -> Tensor:
    """Where the concept is, from the attention maps of one pass.

    Args:
        maps: of all layers, each (n, pixels, tokens).
        lengths: tokens of each prompt, the start token included and the end token not.
        side: of the maps that count; those nearest to it are taken when there are none.
        threshold: of the mean map, scaled to [0, 1] for each image.

    Returns:
        1 at the concept's pixels and 0 elsewhere, (n, 1, s, s).
    """
    sides = [isqrt(found.shape[1]) for found in maps]
    nearest = min(sides, key=lambda other: abs(other - side))
    chosen = torch.stack([found for found, other in zip(maps, sides, strict=True) if other == nearest]).mean(0)
    heat = torch.stack([row[:, 1:length].mean(1) for row, length in zip(chosen, lengths, strict=True)])
    low, high = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    scaled = (heat - low) / (high - low).clamp_min(1e-9)
    return (scaled >= threshold).to(heat.dtype).view(-1, 1, nearest, nearest)


def outside(output: Tensor, mask: Tensor) -> Tensor:
    """R_l: what an eraser's output (n, pixels, channels) does where ``mask`` (n, 1, s, s) is 0; a mean over images."""
    side = isqrt(output.shape[1])
    elsewhere = 1 - torch.nn.functional.interpolate(widened(mask), (side, side)).flatten(1)
    return ((widened(output).pow(2).mean(2) * elsewhere).sum(1) / (elsewhere.sum(1) + 1e-9)).mean()


class Receler(ESD):
    """ESD in erasers, where an adversary wrote behind the prompt."""

    Config: ClassVar = RecelerConfig
    config: RecelerConfig

    def __init__(self, config: RecelerConfig, context: HardeningContext) -> None:
        super().__init__(config, context)
        attach(context.model.unet, rank=config.rank, activation=config.variant, seed=derive(context.seed, "receler"))
        self._concept_of = {prompt: row for row, c in enumerate(context.concepts) for prompt in c.prompt_list}
        generator = torch.Generator().manual_seed(derive(context.seed, "receler", "adversary"))
        self._vectors = self._start(len(context.concepts), generator)
        self._pending: tuple[Tensor, Tensor] | None = None

    def _start(self, count: int, generator: torch.Generator) -> Tensor:
        """Adversarial vectors before their first step: uniform in [0, 1), (count, k, width)."""
        empty = self.context.teacher.empty.states
        return torch.rand(count, self.config.adversarial_tokens, empty.shape[2], generator=generator).to(empty)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The erasers."""
        return {name: value for name, value in self.context.model.named_parameters().items() if ".eraser." in name}

    def state(self) -> dict[str, Tensor]:
        """The adversary's vectors."""
        return {"vectors": self._vectors} if self.config.keep_adversary else {}

    def after_step(self) -> None:
        """What this step's attack found is where the next one starts."""
        if self._pending is not None:
            concepts, found = self._pending
            self._vectors[concepts] = found
            self._pending = None

    def adversary(self, drawn: Drawn, wanted: Tensor, starts: list[int], generator: torch.Generator) -> Conditioning:
        """The captions' text states with the adversary's vectors behind their tokens.

        Args:
            drawn: latents, timesteps and captions.
            wanted: what the base model predicts there for the captions, (n, c, h, w).
            starts: position of the end token of each caption.
        """
        config, model = self.config, self.context.model
        clean = model.encode_prompts(drawn.captions)
        if not config.attack_steps:
            return clean
        concepts = torch.tensor([self._concept_of[caption] for caption in drawn.captions], device=wanted.device)
        present, rows = concepts.unique(return_inverse=True)

        def attacked(vectors: Tensor) -> Conditioning:
            return replace(clean, states=write_behind(clean.states, vectors[rows], starts))

        found = attack(
            lambda vectors: (model.predict(drawn.latents, drawn.t, attacked(vectors)) - wanted).pow(2).mean(),
            self._vectors[present] if config.keep_adversary else self._start(len(present), generator),
            steps=config.attack_steps,
            learning_rate=config.attack_learning_rate,
            weight_decay=config.attack_weight_decay,
        )
        if config.keep_adversary and self._pending is None:  # an objective asks again later in a step
            self._pending = present, found
        return attacked(found)

    def loss(self, generator: torch.Generator) -> Tensor:
        """ESD's loss where the adversary led, and what the erasers do away from the concept."""
        config, model, teacher = self.config, self.context.model, self.context.teacher
        drawn, target = self._examples(generator)
        starts = [len(token_ids(model, caption)) - 1 for caption in drawn.captions]
        with torch.no_grad(), attention_maps(teacher) as maps:
            wanted = teacher.predict(drawn.latents, drawn.t, teacher.encode_prompts(drawn.captions))
        mask = concept_mask(maps, starts, max(1, model.latent_shape[1] // 4), config.threshold)
        found = self.adversary(drawn, wanted, starts, generator)
        outputs: list[Tensor] = []
        handles = [
            eraser.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            for eraser in erasers(model.unet).values()
        ]
        try:
            with whole_batches():
                erase = (model.predict(drawn.latents, drawn.t, found) - target).pow(2).mean()
        finally:
            for handle in handles:
                handle.remove()
        away = torch.stack([outside(output, mask) for output in outputs]).mean()
        return erase + config.locality * away
