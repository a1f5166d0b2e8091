"""What a model draws that has half relearned a thing, imitated in latents: pale, blurred, mixed and half-drawn images.

Three ways, each from drawings whose content is known, so that no relearned image has to be labelled for training:

- *predicted*: the model's prediction of the image at a high timestep, ``(z_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)``:
  with the right prompt, with none, or guided by a wrong one;
- *mixed*: latents of two drawings, the first one stronger;
- *faded*: latents pulled to those of a plain image.

All pass through the model's decoder, after a little noise of a latent cell's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from safeguard.diffusion.model import DiffusionModel

WAYS = ("predicted", "unprompted", "misled", "mixed", "faded")
HIGHEST = {"predicted": 950, "unprompted": 700, "misled": 550}
"""Timesteps up to which the drawing's name is still a fair label; looked at by eye."""
LOWEST = 250
LATENT_NOISE = 0.35
ROWS = 48


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def _predicted(
    model: DiffusionModel, latents: Tensor, prompts: Sequence[str], highest: int, generator: torch.Generator
) -> Tensor:
    """The model's prediction of the clean latents from noisy ones, at timesteps between the lowest and ``highest``."""
    t = torch.randint(LOWEST, highest, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = model.add_noise(latents, noise, t)
    signal, scale = model.coefficients(t)
    predicted: Tensor = (noisy - scale * model.predict_noise(noisy, t, model.encode_prompts(prompts))) / signal
    return predicted


def _one_way(
    model: DiffusionModel, way: str, latents: Tensor, prompts: Sequence[str], plain: Tensor, generator: torch.Generator
) -> Tensor:
    """Latents of half-drawn images, from latents (n, c, h, w) of drawings in random order."""
    n, others = len(latents), latents.roll(1, dims=0)
    if way == "predicted":
        return _predicted(model, latents, prompts, HIGHEST[way], generator)
    if way == "unprompted":
        return _predicted(model, latents, [""] * n, HIGHEST[way], generator)
    if way == "misled":
        return _predicted(model, latents, [*prompts[-1:], *prompts[:-1]], HIGHEST[way], generator)
    share = _uniform(n, 0.55, 0.85, generator) if way == "mixed" else _uniform(n, 0.2, 0.8, generator)
    return share * latents + (1 - share) * (others if way == "mixed" else plain)


@torch.no_grad()
def half_drawn(
    model: DiffusionModel,
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    copies: int,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Half-drawn variants of drawings, ``copies`` of each.

    Args:
        images: uint8 (n, 64, 64, 3).
        prompts: what each shows.

    Returns:
        uint8 images (n * copies, 64, 64, 3) and for each the row of its drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    latents, _ = model.encode_images(images)
    plain, _ = model.encode_images(np.full((1, *images.shape[1:]), 255, dtype=np.uint8))
    rows = torch.randperm(len(images) * copies, generator=generator) % len(images)
    found = []
    for number, part in enumerate(rows.split(ROWS)):
        way = WAYS[number % len(WAYS)]
        chosen = [prompts[row] for row in part.tolist()]
        changed = _one_way(model, way, latents[part], chosen, plain, generator)
        changed = changed + torch.randn(changed.shape, generator=generator) * _uniform(
            len(part), 0, LATENT_NOISE, generator
        )
        found.append(model.decode(changed))
        done(min((number + 1) * ROWS, len(rows)))
    return np.concatenate(found), rows.numpy()
