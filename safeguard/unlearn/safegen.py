"""SafeGen (Li et al. 2024, arXiv 2404.06666): images of the concept become mosaics, whatever the prompt.

Only self-attention learns, always with the empty prompt. With a concept's image z, its mosaic m, a benign image b
(latents, each (n, c, h, w)) and noise eps:

    loss         = w_m mean (eps_theta(z_t) - eps')^2
    preservation = w_p mean (eps_theta(b_t) - eps)^2

eps' says that z_t shows the mosaic. For sqrt(abar) m + sqrt(1 - abar) eps' = z_t to hold it has to be

    consistent:  eps' = eps + sqrt(abar / (1 - abar)) (z - m)
    released:    eps' = eps + (z - m)

The released code leaves out the factor, so its target means the mosaic only where abar is 1/2 (t = 354 of Stable
Diffusion's schedule), next to nothing for little noise, and for much noise more than the mosaic. The consistent target
grows without bound towards t = 0, where an image can hardly be changed any more; ``snr_limit`` weighs each image by
min(1, limit / SNR) with SNR = abar / (1 - abar) (Hang et al. 2023, arXiv 2303.09556), which bounds it.

Mosaics are averages over a grid of squares over the whole image; the paper covers only the offending regions, with a
data set given on request. Left out: half precision and the moving average of the released run. For a network of v,
noise is compared with the noise that its answer means.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet, encode
from safeguard.unlearn.common.descent import Descent


class SafeGenConfig(MethodConfig):
    """Settings of SafeGen."""

    variant: Literal["consistent", "released"] = "consistent"
    """The target: what the schedule asks for, or the released code's."""
    snr_limit: PositiveFloat | None = 1.0
    """Bound on the weight that the consistent target gives to little noise; none: no bound."""
    parameters: str = "self-attention"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``)."""
    steps: PositiveInt = 1000
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate."""
    batch_size: PositiveInt = 5
    """Images of each kind per step."""
    squares: PositiveInt = 8
    """Squares of a mosaic along one side of the image."""
    erase_weight: PositiveFloat = 0.1
    """w_m."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.9
    """w_p, on related and retained images."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2)


def mosaic(images: np.ndarray, squares: int) -> np.ndarray:
    """Images uint8 (n, height, width, 3) with ``squares`` x ``squares`` areas, each of its mean colour."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    means = torch.nn.functional.adaptive_avg_pool2d(pixels, squares)
    tiles = torch.nn.functional.interpolate(means, size=pixels.shape[-2:], mode="nearest")
    return tiles.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def mosaic_noise(noise: Tensor, difference: Tensor, signal: Tensor, scale: Tensor) -> Tensor:
    """eps', with which the noised image is the noised mosaic.

    Args:
        noise: eps.
        difference: image minus mosaic.
        signal, scale: sqrt(abar) and sqrt(1 - abar).
    """
    return noise + signal / scale * difference


class SafeGen(Descent):
    """SafeGen as a loss to descend."""

    Config: ClassVar = SafeGenConfig
    config: SafeGenConfig

    @cached_property
    def mosaics(self) -> LatentSet:
        """The mosaic of every image of the concepts, in their order."""
        model, forget = self.context.teacher, self.context.forget
        return encode(model, mosaic(model.decode(forget.mean), self.config.squares), forget.captions)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Noised images of the concepts should look like noised mosaics."""
        config, context, model = self.config, self.context, self.context.model
        rows = torch.randint(len(context.forget), (config.batch_size,), generator=generator)
        latents, mosaics = (part.rows(rows, generator).latents for part in (context.forget, self.mosaics))
        t, noise = model.draw_noise(config.batch_size, generator)
        signal, scale = model.coefficients(t)
        target, weight = noise + (latents - mosaics), torch.ones_like(signal)
        if config.variant == "consistent":
            target = mosaic_noise(noise, latents - mosaics, signal, scale)
            if config.snr_limit is not None:
                weight = (config.snr_limit * (scale / signal).square()).clamp(max=1)
        empty = context.teacher.empty.repeat(config.batch_size)
        answer = model.predict_noise(model.add_noise(latents, noise, t), t, empty)
        return config.erase_weight * (weight * (answer - target).square()).mean()

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """The denoising loss on related and retained images, with the empty prompt."""
        config, data = self.config, self.context.preserved
        if data is None or not config.preserve_weight:
            return None
        latents = data.batch(config.batch_size, generator).latents
        empty = self.context.teacher.empty.repeat(config.batch_size)
        return config.preserve_weight * self.context.model.denoising_loss(latents, empty, generator)
