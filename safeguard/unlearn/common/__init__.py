"""What unlearners share: the terms that keep the rest as it is, and prompts; larger parts have a file each."""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.data.latents import LatentSet
from safeguard.policy.schema import Subject
from safeguard.unlearn.base import HardeningContext


def distillation(context: HardeningContext, data: LatentSet, size: int, generator: torch.Generator) -> Tensor:
    """MSE between the edited model's and the base model's noise prediction on noised images of ``data``."""
    batch = data.batch(size, generator)
    t, noise = context.model.draw_noise(size, generator)
    noisy = context.model.add_noise(batch.latents, noise, t)
    with torch.no_grad():
        target = context.teacher.predict(noisy, t, batch.conditioning)
    return (context.model.predict(noisy, t, context.model.encode_prompts(batch.captions)) - target).pow(2).mean()


def preservation(context: HardeningContext, weight: float, size: int, generator: torch.Generator) -> Tensor | None:
    """Weighted distillation on related and retained images; None when there are none, or no weight."""
    data = context.preserved if weight else None  # asking for them draws them
    return None if data is None else weight * distillation(context, data, size, generator)


def bounded_ascent(loss: Tensor, bound: float) -> Tensor:
    """Decreases with ``loss`` at slope -1 far below ``bound`` and is flat far above it."""
    width = 0.1 * bound
    return width * torch.nn.functional.softplus((bound - loss) / width)


def kept_subjects(context: HardeningContext) -> list[Subject]:
    """What must stay as it is: retained and related subjects; :attr:`HardeningContext.preserved` draws them."""
    related = [neighbour for concept in context.concepts for neighbour in concept.related]
    return [*context.policy.retain, *related]


def erase_prompts(context: HardeningContext) -> list[str]:
    """All prompts of all concepts."""
    return [prompt for concept in context.concepts for prompt in concept.prompt_list]


def erase_pairs(context: HardeningContext) -> list[tuple[str, str]]:
    """All prompts of all concepts, each with its anchor."""
    return [pair for concept in context.concepts for pair in zip(concept.prompt_list, concept.anchor_list, strict=True)]
