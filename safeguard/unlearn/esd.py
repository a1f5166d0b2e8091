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

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.model.parameters import select
from safeguard.model.sampling import initial_noise, trajectory
from safeguard.seeds import derive
from safeguard.unlearn.base import Workbench
from safeguard.unlearn.common import TrajectoryPool, erase_prompts, preservation

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
    """Trajectories kept when latents come from the frozen model."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""


class ESD:
    """Erased Stable Diffusion as a loss to descend."""

    Config: ClassVar = ESDConfig
    closed_form: ClassVar = False

    def __init__(self, config: ESDConfig, bench: Workbench) -> None:
        self.config = config
        self.bench = bench
        self.steps = config.steps
        self.learning_rate = config.learning_rate
        self._prompts = erase_prompts(bench)
        anchors = [concept.anchor for concept in bench.concepts for _ in concept.prompt_list]
        self._anchor_of = dict(zip(self._prompts, anchors, strict=True))
        self._pool: TrajectoryPool | None = None

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The variant's parameter group."""
        return select(self.bench.model, _GROUPS[self.config.variant])

    def edit(self) -> None:
        """ESD has no closed form."""
        raise NotImplementedError("ESD is descended, not edited")

    def _latents(self, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
        config, bench = self.config, self.bench
        if config.latents_from == "frozen":
            if self._pool is None:
                self._pool = TrajectoryPool(
                    bench.teacher,
                    self._prompts,
                    size=config.pool,
                    steps=config.trajectory_steps,
                    guidance=config.start_guidance,
                    seed=derive(bench.seed, "esd"),
                )
            return self._pool.draw(config.batch_size, generator)
        chosen = torch.randint(len(self._prompts), (config.batch_size,), generator=generator).tolist()
        captions = [self._prompts[i] for i in chosen]
        stop = int(torch.randint(1, config.trajectory_steps + 1, (), generator=generator))
        seeds = torch.randint(2**62, (config.batch_size,), generator=generator).tolist()
        path = trajectory(
            bench.model,
            bench.model.encode_prompts(captions),
            initial_noise(bench.model, seeds),
            steps=config.trajectory_steps,
            guidance=config.start_guidance,
            stop=stop,
        )
        latents, t = path[-1]
        return latents, torch.full((len(latents),), t, device=latents.device), captions

    def loss(self, generator: torch.Generator) -> Tensor:
        """Mean squared distance to the negatively guided target."""
        teacher = self.bench.teacher
        latents, t, captions = self._latents(generator)
        concept = teacher.encode_prompts(captions)
        anchor = teacher.encode_prompts([self._anchor_of[caption] for caption in captions])
        empty = teacher.empty.repeat(len(latents))
        with torch.no_grad():
            towards, guided, unguided = (teacher.predict(latents, t, c) for c in (anchor, concept, empty))
            target = towards - self.config.eta * (guided - unguided)
        return (self.bench.model.predict(latents, t, concept) - target).pow(2).mean()

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """Distillation on related and retained images."""
        return preservation(self.bench, self.config.preserve_weight, self.config.preserve_batch, generator)
