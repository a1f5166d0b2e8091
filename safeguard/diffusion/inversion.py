"""A DDIM run backwards, from an image to latents that lead to it, and the way from one to another on a sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import ddim, ddim_steps, guided_prediction, images_at_once

PARALLEL = 1e-4
"""Sine of an angle below which two directions are one."""


@torch.no_grad()
def invert(
    model: DiffusionModel, prompt: Conditioning, latents: Tensor, *, steps: int, guidance: float, first: int = 0
) -> Tensor:
    """Latents from which a DDIM run comes to the given ones, (n, c, h, w), when it begins with its step ``first``.

    A step is x' = p x + q o(x, t) with the guided output o. Backwards it is x = (x' - q o(x', t)) / p: the output is
    that for x', which is all that is known of x (DDIM inversion, Song et al. 2020, arXiv 2010.02502, Section 4.3; the
    error of this grows with guidance).

    Args:
        latents: of images, scaled.
        steps: of the whole run.
        first: counted from 0; 0: back to noise.
    """
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    one, none = torch.ones(1), torch.zeros(1)

    def work(rows: slice) -> Tensor:
        found = latents[rows]
        for t in scheduler.timesteps[first:].flip(0):
            p, q = (float(scheduler.step(output, t, x).prev_sample) for output, x in ((none, one), (one, none)))
            found = (found - q * guided_prediction(model, found, t, prompt[rows], guidance)) / p
        return found

    return torch.cat(model.execution.in_batches("draw", work, len(latents), images_at_once(model)))


@torch.no_grad()
def resume(
    model: DiffusionModel, prompt: Conditioning, latents: Tensor, *, steps: int, guidance: float, first: int
) -> Tensor:
    """Where a deterministic DDIM run leads from there, (n, c, h, w), when it begins with its step ``first``."""

    def work(rows: slice) -> Tensor:
        found = latents[rows]
        for point in ddim_steps(model, prompt[rows], found, steps=steps, guidance=guidance, first=first):
            found = point.following
        return found

    return torch.cat(model.execution.in_batches("draw", work, len(latents), images_at_once(model)))


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Between two latents, row by row (n, c, h, w), along the great circle: ends of one norm keep it on the way.

    sin((1 - s) w) / sin(w) a + sin(s w) / sin(w) b, w being the angle between them; a line where they are parallel.
    """
    angle = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1).acos().view(-1, 1, 1, 1)
    along = angle.sin() > PARALLEL
    sine = angle.sin().where(along, torch.ones_like(angle))
    first = (((1 - share) * angle).sin() / sine).where(along, torch.full_like(angle, 1 - share))
    second = ((share * angle).sin() / sine).where(along, torch.full_like(angle, share))
    return first * a + second * b
