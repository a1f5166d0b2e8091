"""Gradient ascent on images of the concept: ResAlign's harmful loss (arXiv 2507.16302), bounded.

    L_harm = -L_DM(theta; concept images)

Plain ascent is unbounded and wrecks a model within a few hundred steps. Here the ascended loss saturates:

    loss = w softplus((bound - L_DM) / w),  w = 0.1 bound

which falls with slope -1 while L_DM < ``bound`` and is flat beyond it, so erasure stops by itself once the concept's
denoising error reaches ``bound``. An untrained or wrong prediction of unit noise has L_DM of about 1. A very large
``bound`` is the unbounded ascent of the papers; numbers below are ours, since none of them erases by ascent alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.common.descent import Descent
from safeguard.unlearn.common.trajectories import draw_captions


class GradientAscentConfig(MethodConfig):
    """Settings of gradient ascent."""

    parameters: str = "full"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""
    steps: PositiveInt = 200
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate."""
    batch_size: PositiveInt = 4
    """Concept images per step."""
    captions: Literal["own", "any"] = "own"
    """Under which prompts images shall be unlikely: each under the one it was drawn for, or under any of its concept's.
    Inside an objective ``any`` looks at the images of the fine-tune just simulated: what it taught shall not be drawn
    for the concept's other prompts."""
    bound: PositiveFloat = 0.5
    """Denoising loss on the concept at which ascent stops."""
    preserve_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2, preserve_batch=2)


class GradientAscent(Descent):
    """Bounded gradient ascent as a loss to descend."""

    Config: ClassVar = GradientAscentConfig
    config: GradientAscentConfig

    @cached_property
    def _siblings(self) -> dict[str, list[str]]:
        """All prompts of the concept that a prompt belongs to."""
        return {prompt: concept.prompt_list for concept in self.context.concepts for prompt in concept.prompt_list}

    def loss(self, generator: torch.Generator) -> Tensor:
        """Bounded negative denoising loss on concept images."""
        config, context, model = self.config, self.context, self.context.model
        if config.captions == "own":
            batch = context.forget.batch(config.batch_size, generator)
            captions = batch.captions
        else:
            batch = (context.attacked or context.forget).batch(config.batch_size, generator)
            captions = [draw_captions(self._siblings[own], 1, generator)[0] for own in batch.captions]
        conditioning = model.encode_prompts(captions)
        return bounded_ascent(model.denoising_loss(batch.latents, conditioning, generator), config.bound)
