"""How a denoising loss draws its noise and weighs its timesteps; by default neither is touched.

Noise offset (diffusers' training scripts): eps + offset xi with xi ~ N(0, 1), one number per image and channel, so that
a mean brightness is learnt. Min-SNR weights (Hang et al. 2023, arXiv 2303.09556): with snr = abar / (1 - abar), the
error of noise counts min(snr, gamma) / snr, that of v min(snr, gamma) / (snr + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noising:
    """Of one fine-tune.

    Attributes:
        offset: standard deviation of what is added to every channel's noise.
        min_snr: gamma; none: all timesteps count alike.
    """

    offset: float = 0.0
    min_snr: float | None = None

    def shifted(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """The noise (n, c, h, w) with its offset, drawn on the CPU."""
        if not self.offset:
            return noise
        return noise + self.offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator).to(noise)

    def mean(self, squares: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
        """Mean of squared errors (n, c, h, w) at noise levels abar (n,)."""
        if self.min_snr is None:
            return squares.mean()
        snr = alpha / (1 - alpha)
        if prediction_type == "epsilon":
            weight = (self.min_snr / snr).clamp(max=1.0)
        else:
            weight = snr.clamp(max=self.min_snr) / (snr + 1)
        return (weight * squares.flatten(1).mean(1)).mean()
