"""ESD, Erased Stable Diffusion (Gandikota et al. 2023, arXiv 2303.07345).

With frozen base weights theta*, a concept's prompt c, the empty prompt 0 and a partially denoised latent x_t:

    target = eps_*(x_t, 0) - eta [eps_*(x_t, c) - eps_*(x_t, 0)]                                       (paper, Eq. 7)
    loss   = mean (eps_theta(x_t, c) - target)^2

x_t (n, c, h, w) comes from a guided DDIM run with the prompt c. The timestep handed to the network is the latent's own;
the code released first paired latents with timesteps 39 to 58 steps too noisy. ``eta`` is the paper's: the 2025 code's
value is larger by one for the same target. With an anchor prompt a, the empty prompt in the target's first term becomes
a, as in that code's ``erase_from``. ESD has no term that keeps the rest; ``preserve_weight`` adds distillation on the
images of related and retained subjects, without which a small model forgets its neighbours (0 is the paper).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.diffusion.parameters import select
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import erase_pairs, erase_prompts
from safeguard.unlearn.common.descent import Descent
from safeguard.unlearn.common.trajectories import Drawn, TrajectoryPool, draw_captions, draw_fresh

_GROUPS = {
    "x": "cross-attention",
    "x-strict": "cross-attention-kv",
    "u": "no-cross-attention",
    "f": "full",
    "self": "self-attention",
}


class ESDConfig(MethodConfig):
    """Settings of ESD."""

    variant: Literal["x", "x-strict", "u", "f", "self"] = "x"
    """What learns: cross-attention (x), its keys and values, all but it (u), everything (f), self-attention."""
    eta: Annotated[float, Field(ge=0)] = 1.0
    """Negative guidance, on the paper's scale."""
    steps: PositiveInt = 1000
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate."""
    batch_size: PositiveInt = 1
    """Latents per step."""
    start_guidance: PositiveFloat = 3.0
    """Classifier-free guidance while x_t is sampled."""
    trajectory_steps: PositiveInt = 50
    """Length of the DDIM run x_t lies on."""
    latents_from: Literal["frozen", "edited"] = "frozen"
    """Whose DDIM run x_t lies on: the base model's (cached), or the edited model's (the paper; half a run per step)."""
    pool: PositiveInt = 48
    """Trajectories kept when latents come from the frozen model; at least one per prompt."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(
            steps=4, learning_rate=1e-3, batch_size=2, trajectory_steps=3, pool=2, preserve_weight=0.5, preserve_batch=2
        )


def negative_guidance(anchor: Tensor, concept: Tensor, empty: Tensor, eta: float) -> Tensor:
    """The target: the output for the anchor, led away from the concept; all outputs of the frozen model, one shape."""
    return anchor - eta * (concept - empty)


class ESD(Descent):
    """Erased Stable Diffusion as a loss to descend."""

    Config: ClassVar = ESDConfig
    config: ESDConfig

    def __init__(self, config: ESDConfig, context: HardeningContext) -> None:
        super().__init__(config, context)
        self._prompts = erase_prompts(context)
        self._anchor_of = dict(erase_pairs(context))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The variant's parameter group."""
        return select(self.context.model, _GROUPS[self.config.variant])

    @cached_property
    def _pool(self) -> TrajectoryPool:
        config, context = self.config, self.context
        return TrajectoryPool(
            context.teacher,
            self._prompts,
            size=max(config.pool, len(self._anchor_of)),
            steps=config.trajectory_steps,
            guidance=config.start_guidance,
            seed=derive(context.seed, "esd"),
        )

    @cached_property
    def _pool_targets(self) -> Tensor:
        """The target at every latent of the pool."""
        pool = self._pool
        anchors = pool.predictions([self._anchor_of[caption] for caption in pool.captions])
        return negative_guidance(anchors, pool.conditional, pool.unconditional, self.config.eta)

    def _examples(self, generator: torch.Generator) -> tuple[Drawn, Tensor]:
        """Latents of the concepts and what the network should answer there."""
        config, context, teacher = self.config, self.context, self.context.teacher
        if config.latents_from == "frozen":
            places = self._pool.pick(config.batch_size, generator)
            return self._pool.at(places), self._pool_targets[places]
        captions = draw_captions(self._prompts, config.batch_size, generator)
        drawn = draw_fresh(
            context.model, captions, generator, steps=config.trajectory_steps, guidance=config.start_guidance
        )
        prompts = [self._anchor_of[caption] for caption in captions], captions, [""] * len(captions)
        with torch.no_grad():
            anchor, concept, empty = (
                teacher.predict(drawn.latents, drawn.t, teacher.encode_prompts(p)) for p in prompts
            )
        return drawn, negative_guidance(anchor, concept, empty, config.eta)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Mean squared distance to the negatively guided target."""
        drawn, target = self._examples(generator)
        model = self.context.model
        return (model.predict(drawn.latents, drawn.t, model.encode_prompts(drawn.captions)) - target).pow(2).mean()
