"""LCFDSD (Pan et al. 2024, NeurIPS): drive clean and harmful images apart, so that learning one forgets the other.

Latents of clean (related and retained) and harmful (the concepts') images are noised, and the clean image that the
network sees in them is x = (z_t - sqrt(1 - abar) eps_theta(z_t)) / sqrt(abar). With running means of x over either
kind, "own" the image's kind and "other" the other one:

    L_con = |x - mean_own| - lambda1 max(0, |x - mean_other| - margin)                                 (Frobenius norms)

    ng    noise is shifted to eps + 1 for clean and eps - 1 for harmful images, the target stays eps
    lt    x becomes -x - 100 for clean and x + 100 for harmful images before L_con
          both:  loss = lambda L_con + (eps_theta - eps)^2 on clean images,  lambda L_con on harmful ones
    high  loss = (eps_theta - eps)^2 on clean images,  lambda L_con - 0.5 (eps_theta - eps)^2 on harmful ones

Running means take in the present batch, with its gradient, and every optimiser step's batch for good. Clean images
are in the loss itself; ``preserve_weight`` adds distillation on them (0 is the paper).

The released code turns distances into plain numbers, so L_con has no gradient: what it trains is the clean denoising
loss alone (ng, lt) or that with half a gradient ascent (high). ``variant="released"`` is that; it also shows the loss
values of the formula. Where the formula's own gradient leads is worth knowing: -x - 100 against x + 100 moves both
kinds of ``lt`` the same way, and only the denoising loss on clean images tells them apart. The paper also speaks of a
KL divergence between the two kinds; the released code has no such term, and neither has this.

Half of a batch is clean, half harmful; the code takes whatever its data set mixes. For a network of v, noise is
compared with the noise that its answer means.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import bounded_ascent, kept_subjects
from safeguard.unlearn.common.descent import Descent

_WEIGHTS = {"ng": 5e-3, "lt": 5e-5, "high": 5e-5}
SHIFT, OFFSET = 1.0, 100.0
"""What ``ng`` adds to noise, and ``lt`` to images."""


class LCFDSDConfig(MethodConfig):
    """Settings of LCFDSD."""

    variant: Literal["paper", "released"] = "paper"
    """Whether the contrast has its gradient, or none, as in the released code."""
    mode: Literal["ng", "lt", "high"] = "ng"
    """Noise guidance, latent transformation, or high safety."""
    parameters: str = "full"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""
    steps: PositiveInt = 2000
    """Optimiser steps; the released script takes 10000 for high safety."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate; the released scripts let it fall along a cosine."""
    batch_size: PositiveInt = 2
    """Images of each kind per step."""
    contrast_weight: PositiveFloat | None = None
    """lambda; none: the released scripts' 5e-3 (ng) or 5e-5, for latents of 4 x 96 x 96. Distances grow with the root
    of the size."""
    other_weight: Annotated[float, Field(ge=0)] = 1.0
    """lambda1, the weight of the distance to the other kind."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Distance to the other kind that counts as none."""
    bound: PositiveFloat | None = None
    """Denoising loss on the concept at which the ascent of high safety stops; none: never, as published."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2, preserve_weight=0.5, preserve_batch=2)


def contrast(images: Tensor, own: Tensor, other: Tensor, other_weight: float, margin: float) -> Tensor:
    """L_con of every image (n, c, h, w), given the means (c, h, w) of its own and of the other kind: (n,)."""
    near: Tensor = torch.linalg.vector_norm((images - own).flatten(1), dim=1)
    far: Tensor = torch.linalg.vector_norm((images - other).flatten(1), dim=1)
    return near - other_weight * (far - margin).clamp(min=0)


class LCFDSD(Descent):
    """LCFDSD as a loss to descend."""

    Config: ClassVar = LCFDSDConfig
    config: LCFDSDConfig

    def __init__(self, config: LCFDSDConfig, context: HardeningContext) -> None:
        if not kept_subjects(context):
            raise UsageFault(
                "lcfdsd needs clean images", fix="declare related subjects of a concept, or retained subjects"
            )
        super().__init__(config, context)
        self.weight = config.contrast_weight or _WEIGHTS[config.mode]
        self._pending: tuple[Tensor, Tensor] | None = None

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        zeros = torch.zeros(self.context.model.latent_shape, device=self.context.model.device)
        return {"clean": zeros, "harmful": zeros.clone(), "count": zeros.new_zeros(())}

    @property
    def clean(self) -> LatentSet:
        """Related and retained images; drawn when first asked for."""
        assert self.context.preserved is not None
        return self.context.preserved

    def state(self) -> dict[str, Tensor]:
        """The running means (c, h, w) of either kind, and how many images each has seen."""
        return self._means

    def after_step(self) -> None:
        """The images of this step enter the means for good."""
        if self._pending is not None:
            for name, mean in zip(("clean", "harmful"), self._pending, strict=True):
                self._means[name].copy_(mean)
            self._means["count"] += self.config.batch_size
            self._pending = None

    def _contrasts(self, clean: Tensor, harmful: Tensor) -> tuple[Tensor, Tensor]:
        """Mean L_con of either kind."""
        config, count = self.config, self._means["count"]
        seen = self._means["clean"], self._means["harmful"]
        means = [
            (count * mean + images.sum(0)) / (count + len(images))
            for mean, images in zip(seen, (clean, harmful), strict=True)
        ]
        # An objective asks again later in a step, at simulated weights; meta-unlearning's harmful loss only there.
        if self._pending is None:
            self._pending = means[0].detach(), means[1].detach()
        found = [
            contrast(images, own, other, config.other_weight, config.margin).mean()
            for images, own, other in ((clean, means[0], means[1]), (harmful, means[1], means[0]))
        ]
        if config.variant == "released":
            found = [value.detach() for value in found]
        return found[0], found[1]

    def loss(self, generator: torch.Generator) -> Tensor:
        """Contrast and denoising losses of the mode, averaged over clean and harmful images."""
        config, model, size = self.config, self.context.model, self.config.batch_size
        clean, harmful = (data.batch(size, generator) for data in (self.clean, self.context.forget))
        latents = torch.cat([clean.latents, harmful.latents])
        t, noise = model.draw_noise(2 * size, generator)
        sign = torch.ones(2 * size, 1, 1, 1, device=model.device)
        sign[size:] = -1
        noisy = model.add_noise(latents, noise + SHIFT * sign if config.mode == "ng" else noise, t)
        answer = model.predict_noise(noisy, t, model.encode_prompts([*clean.captions, *harmful.captions]))
        signal, scale = model.coefficients(t)
        images = (noisy - scale * answer) / signal
        if config.mode == "lt":
            images = -sign * (images + OFFSET)
        contrasts = self._contrasts(images[:size], images[size:])
        errors = (answer - noise).square().flatten(1).mean(1)
        on_clean, on_harmful = errors[:size].mean(), self.weight * contrasts[1]
        if config.mode == "high":
            ascended = errors[size:].mean()
            on_harmful = on_harmful + 0.5 * (bounded_ascent(ascended, config.bound) if config.bound else -ascended)
        else:
            on_clean = on_clean + self.weight * contrasts[0]
        return (on_clean + on_harmful) / 2
