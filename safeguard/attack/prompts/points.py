"""Noisy images at which prompts are compared: how well does the model predict the noise under each?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import images_at_once


@dataclass(frozen=True)
class Points:
    """m noisy versions of each of n images.

    Attributes:
        latents: z_t, (n, m, c, h, w).
        t: their timesteps, (n, m).
        wanted: what is to be predicted, (n, m, c, h, w).
    """

    latents: Tensor
    t: Tensor
    wanted: Tensor

    def losses(self, model: DiffusionModel, prompts: Conditioning) -> Tensor:
        """Mean squared error of the predicted noise for one prompt per image, (n,), averaged over its m points."""
        return (self.predictions(model, prompts) - self.wanted).pow(2).flatten(1).mean(1)

    def predictions(self, model: DiffusionModel, prompts: Conditioning) -> Tensor:
        """The predicted noise for one prompt per image, (n, m, c, h, w)."""
        images, each = self.t.shape

        def work(rows: slice) -> Tensor:
            latents, t = (part.flatten(0, 1)[rows] for part in (self.latents, self.t))
            owner = torch.arange(images, device=t.device).repeat_interleave(each)[rows]
            return model.predict_noise(latents, t, prompts[owner])

        if torch.is_grad_enabled():
            return work(slice(None)).view_as(self.latents)
        parts = model.execution.in_batches("draw", work, images * each, images_at_once(model))
        return torch.cat(parts).view_as(self.latents)


def noisy(model: DiffusionModel, images: Tensor, t: Tensor, generator: torch.Generator) -> Points:
    """Fresh noise on every image (n, c, h, w) at timesteps (n, m)."""
    count, each = t.shape
    noise = torch.randn(count, each, *model.latent_shape, generator=generator).to(model.device)
    t = t.to(model.device)
    repeated = images[:, None].expand_as(noise).flatten(0, 1)
    latents = model.add_noise(repeated, noise.flatten(0, 1), t.flatten()).view_as(noise)
    return Points(latents, t, noise)


def spaced_times(model: DiffusionModel, count: int) -> list[int]:
    """So many timesteps in the middle of equal parts: for 50 of 1000 they are 10, 30, ..., 990."""
    return [(2 * place + 1) * model.timesteps // (2 * count) for place in range(count)]


def fixed_points(model: DiffusionModel, images: Tensor, count: int, generator: torch.Generator) -> Points:
    """Points spread over all timesteps, at which prompts are compared throughout a search."""
    t = torch.tensor(spaced_times(model, count)).expand(len(images), -1)
    return noisy(model, images, t, generator)
