"""Between images and latents: a pass of the autoencoder, and how many images one may have.

Images are uint8 (n, height, width, 3), latents float (n, channels, h, w) multiplied by the ``scaling_factor``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safeguard.diffusion.micro_batches import rows_within

BATCH = 32
"""Images encoded or decoded at once,"""
PIXELS = 2**19
"""and their pixels together: two images of 512 x 512. At full size either pass keeps 3 kB for each of them."""


def images_at_once(height: int, width: int) -> int:
    """How many images of that size are encoded or decoded at once."""
    return rows_within(PIXELS, height * width, BATCH)


def encode(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled mean and standard deviation of the posterior of images: each float32 (n, c, h, w)."""
    pixels = images.permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
    posterior, scale = vae.encode(pixels).latent_dist, vae.config.scaling_factor
    return (posterior.mean * scale).float(), (posterior.std * scale).float()


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images of latents, uint8 (n, 3, height, width) with the layout in memory that the decoder gave them."""
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    images: Tensor = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return images
