r"""Undo: the eraser's own loss, descended backwards, without any image of the concept; needs weights and gradients.

ESD led a concept's prompt c away from the concept, by guidance turned round (arXiv 2303.07345, Eq. 7). The attacker
turns it round once more, at what is left of it in the released weights theta, which stay frozen as a teacher:

    target = eps_theta(x_t, 0) + s [eps_theta(x_t, c) - eps_theta(x_t, 0)]
    loss   = mean (eps_theta'(x_t, c) - target)^2                                        0: the empty prompt

s > 1 amplifies whatever direction is left, which a weak eraser leaves as it was; s < 0 mirrors it, and s = -1 / eta is
the exact inverse of an ESD that has reached its target. s = 1 would change nothing. x_t are noised images that the
released model itself draws for the concept's prompts. The steps backwards along an eraser's objective are those of
"Erased or Dormant" (arXiv 2505.16174).

Departures: the ascent theta <- theta + eta grad L_erase has no end and soon breaks the network, so the same direction
is given to it as a target; outputs are the network's own (noise or v), in which the target is the same combination.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Self

import torch
from pydantic import PositiveInt, field_validator
from torch import Tensor

from safeguard.attack.adapting import Adapting, AdaptingConfig
from safeguard.attack.base import Attempt
from safeguard.attack.target import Target
from safeguard.config import IMAGES, FineTuningData, Training
from safeguard.data.latents import Batch, LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner
from safeguard.finetune.wrapper import Wrapper
from safeguard.results.plan import Cost
from safeguard.seeds import derive

STEPS = 20
"""Of a run that draws one of the model's own images."""


class UndoConfig(AdaptingConfig):
    """How the eraser's loss is descended backwards."""

    scale: float = 3.0
    """s: how far along the direction that is left; negative: the other way."""
    images: PositiveInt = IMAGES
    """Images that the released model draws of itself."""

    @field_validator("scale")
    @classmethod
    def _moves(cls, scale: float) -> float:
        if scale == 1:
            raise ValueError("a scale of 1 is where the model is already")
        return scale

    @classmethod
    def tiny(cls) -> Self:
        """Four steps on two images."""
        return cls(images=2, training=Training(steps=4, learning_rate=1e-4, batch_size=2), checkpoints=[2, 4])


class Undo(Adapting[UndoConfig]):
    """Amplify what an eraser has left, and stop at every checkpoint."""

    Config: ClassVar = UndoConfig

    def beside(self) -> list[FineTuningData]:
        """None: the method's own loss is not asked for."""
        return []

    def cost(self) -> Cost:
        """Two more rows per row that learns, for the target; and the model's own images, guided."""
        images, training = self.config.images, self.config.training
        trained = self.config.checkpoints[-1] * training.batch_size * training.accumulation
        measured = len(self.efforts()) * images
        return self.cost_of(images, 2 * (trained + measured + STEPS * images))

    def covers(self) -> list[str]:
        """No kind: it has brought no concept back yet on the embedded model."""
        return []

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Its steps on the model's own images, towards a copy of the model as it was."""
        model, own = target.model, derive(target.exam, self.probe, "own images", seed)
        tuner = self.tuner()
        data = own_images(model, target, self.config.images, own)
        yield from self.adapted(target, data, Amplified(tuner, model.frozen_copy(), self.config.scale), seed)


def own_images(model: DiffusionModel, target: Target, count: int, seed: int) -> LatentSet:
    """What the model itself draws for the concepts' prompts."""
    prompts = [prompt for concept in target.concepts for prompt in concept.prompt_list]
    return generate(model, prompts, count, seed=seed, steps=STEPS, guidance=target.policy.certification.guidance)


def led(empty: Tensor, given: Tensor, scale: float) -> Tensor:
    """The output for no prompt, and ``scale`` times what a prompt adds to it; one shape."""
    return empty + scale * (given - empty)


class Amplified(Wrapper):
    """A method that learns the frozen model's answers, led along what the prompt still changes in them.

    Args:
        tuner: the method; its loss is not asked for.
        teacher: the frozen model.
        scale: s.
    """

    def __init__(self, tuner: FineTuner, teacher: DiffusionModel, scale: float) -> None:
        super().__init__(tuner)
        self.teacher, self.scale = teacher, scale

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """The concepts' prompts as they are, whatever the method makes of captions."""
        return captions

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared distance to the target, at uniform timesteps and fresh noise."""
        t, noise = model.draw_noise(len(batch.captions), generator)
        noisy = model.add_noise(batch.latents, noise, t)
        output = model.predict(noisy, t, model.encode_prompts(batch.captions))
        return (output - self.target(noisy, t, batch.captions)).pow(2).mean()

    @torch.no_grad()
    def target(self, noisy: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        """What is to be answered to each caption."""
        teacher = self.teacher
        empty, given = (
            teacher.predict(noisy, t, teacher.encode_prompts(prompts)) for prompts in ([""] * len(captions), captions)
        )
        return led(empty, given, self.scale)
