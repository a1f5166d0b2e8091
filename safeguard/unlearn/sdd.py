"""SDD, safe self-distillation (Kim et al. 2023, arXiv 2307.05977).

With the weights theta being edited, a concept's prompt c_s, the empty prompt 0 and a partially denoised latent x_t:

    loss = mean (eps_theta(x_t, c_s) - sg[eps_theta(x_t, 0)])^2

so the model teaches itself: under the concept's prompt it is to say what it says without one, and no gradient passes
through that answer (sg). x_t (n, c, h, w) comes from a guided DDIM run of an exponential moving average of theta,
average <- m average + (1 - m) theta after every optimiser step, with the prompt c_p that names all concepts, joined by
commas. The average is the result. An objective around SDD shapes theta itself, so there theta is the result.

A concept may have many prompts; every row draws one per concept, c_p joins them, and c_s is one of them: one prompt
per concept is the paper. The text encoder truncates c_p to its context.

The README of the released code has c_s and c_p swapped; the code is as above. Its timesteps are drawn from the whole
interval between two DDIM steps (up to 18 noisier than their latent), and a run of no steps becomes a full one, whose
clean latents meet timesteps of pure noise: ``variant="released"``. By default the timestep is the latent's own. Its
option to take concepts in order always takes the first, which is not repeated.
SDD has no term that keeps the rest; ``preserve_weight`` adds distillation on related and retained images (0 is the
paper).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.diffusion.sampling import partially_denoised
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.average import MovingAverage
from safeguard.unlearn.common.descent import Descent
from safeguard.unlearn.common.trajectories import Drawn, draw_captions, draw_fresh, draw_initial


class SDDConfig(MethodConfig):
    """Settings of SDD."""

    variant: Literal["aligned", "released"] = "aligned"
    """Timesteps: those of the latents, or drawn as the released code does."""
    parameters: str = "cross-attention"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""
    steps: PositiveInt = 1500
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate."""
    batch_size: PositiveInt = 1
    """Latents per step."""
    order: Literal["iterative", "random", "composite"] = "iterative"
    """c_s: the concepts in turn, one at random, or all of them joined."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """m of the moving average. It looks back over about 1 / (1 - m) steps, so a short run needs a smaller one."""
    result: Literal["average", "edited"] = "average"
    """What is kept when SDD runs alone: the average (the paper), or the weights that were trained."""
    latents_from: Literal["average", "frozen"] = "average"
    """Whose DDIM run x_t lies on: the average's (the paper), or the base model's."""
    start_guidance: PositiveFloat = 3.0
    """Classifier-free guidance while x_t is sampled."""
    trajectory_steps: PositiveInt = 50
    """Length of the DDIM run x_t lies on."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(
            steps=4,
            learning_rate=1e-3,
            batch_size=2,
            momentum=0.5,
            trajectory_steps=3,
            preserve_weight=0.5,
            preserve_batch=2,
        )


def released_times(entry: int, steps: int, timesteps: int) -> range:
    """The timesteps the released code draws from after ``entry`` of ``steps`` DDIM steps: for 0 of 50 it is 980-999."""
    width = timesteps // steps
    return range(timesteps - width * (entry + 1), timesteps - width * entry)


class SDD(Descent):
    """Safe self-distillation as a loss to descend."""

    Config: ClassVar = SDDConfig
    config: SDDConfig

    def __init__(self, config: SDDConfig, context: HardeningContext) -> None:
        super().__init__(config, context)
        self._done = torch.zeros((), dtype=torch.int64)
        self._follows = "average" in (config.latents_from, config.result)

    @cached_property
    def average(self) -> MovingAverage:
        """The teacher, which starts at the weights that the first step finds."""
        return MovingAverage(self.context.model, self.config.momentum)

    def state(self) -> dict[str, Tensor]:
        """Steps done, and the averaged weights."""
        averaged = self.average.state() if self._follows else {}
        return {"done": self._done} | {f"average.{name}": value for name, value in averaged.items()}

    def after_step(self) -> None:
        """Let the average follow."""
        self._done += 1
        if self._follows:
            self.average.update()

    def _captions(self, generator: torch.Generator) -> tuple[list[str], list[str]]:
        """(c_p, c_s) of every row."""
        config, concepts = self.config, self.context.concepts
        prompts = [draw_captions(concept.prompt_list, config.batch_size, generator) for concept in concepts]
        rows = [list(row) for row in zip(*prompts, strict=True)]
        joined = [", ".join(row) for row in rows]
        if config.order == "composite":
            return joined, joined
        turns = torch.randint(len(concepts), (config.batch_size,), generator=generator)
        if config.order == "iterative":
            turns = (torch.arange(config.batch_size) + self._done * config.batch_size) % len(concepts)
        return joined, [row[turn] for row, turn in zip(rows, turns.tolist(), strict=True)]

    def _latents(self, captions: list[str], generator: torch.Generator) -> Drawn:
        config = self.config
        model = self.average.model if config.latents_from == "average" else self.context.teacher
        steps, guidance = config.trajectory_steps, config.start_guidance
        if config.variant == "aligned":
            return draw_fresh(model, captions, generator, steps=steps, guidance=guidance)
        entry = int(torch.randint(steps, (), generator=generator))
        latents = partially_denoised(
            model,
            model.encode_prompts(captions),
            draw_initial(model, len(captions), generator),
            after=entry or steps,
            steps=steps,
            guidance=guidance,
        )
        times = released_times(entry, steps, model.timesteps)
        t = torch.randint(times.start, times.stop, (len(captions),), generator=generator)
        return Drawn(latents, t.to(model.device), captions)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Mean squared distance to the model's own answer without a prompt."""
        model, teacher = self.context.model, self.context.teacher
        joined, captions = self._captions(generator)
        latents, t, _ = self._latents(joined, generator)
        with torch.no_grad():
            target = model.predict(latents, t, teacher.empty.repeat(len(latents)))
        return (model.predict(latents, t, teacher.encode_prompts(captions)) - target).pow(2).mean()

    @torch.no_grad()
    def edit(self) -> None:
        """The average takes the place of the trained weights."""
        if self.config.result == "average":
            averaged = self.average.state()
            for name, value in self.parameters().items():
                value.copy_(averaged[name])
