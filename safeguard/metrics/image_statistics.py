"""Is there anything in these images at all? Noise and blank output are caught before any rate is believed.

*Blank*: the standard deviation over all pixels and channels is below :data:`BLANK_STD` grey levels.
*Noise*: at least :data:`NOISE_ENERGY` of the energy of the grey image (its mean removed) lies above a quarter of the
sampling frequency, that is in details below four pixels. White noise spreads its energy evenly over all frequencies,
so 1 - pi/16 = 0.80 of it lies there; pictures fall off with frequency (natural ones like 1/f^2), and the largest
share among the reference world's 3,963 drawings is 0.17. Noise that went through a decoder is smoother than that and
looks like blotches: it is not caught here but by the utility control, since it shows nothing that was asked for.
"""

from __future__ import annotations

import numpy as np

from safeguard.errors import UsageFault

BLANK_STD = 4.0
NOISE_ENERGY = 0.5
CUT_OFF = 0.25
"""Cycles per pixel."""


def high_frequency_share(images: np.ndarray) -> np.ndarray:
    """Energy share above :data:`CUT_OFF`, (n,) in [0, 1], of images (n, h, w, channels) in grey; 0 for plain ones."""
    height, width = images.shape[1:3]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    shares = np.zeros(len(images))
    for index, image in enumerate(images):
        grey = image.mean(axis=2)
        energy = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        total = energy.sum()
        shares[index] = energy[frequency > CUT_OFF].sum() / total if total > 1e-6 else 0.0
    return shares


def blank(images: np.ndarray) -> np.ndarray:
    """Which of uint8 images (n, h, w, 3) are blank: bool (n,)."""
    return np.array([image.std() < BLANK_STD for image in images])


def noise(images: np.ndarray) -> np.ndarray:
    """Which of uint8 images (n, h, w, 3) are noise: bool (n,)."""
    return ~blank(images) & (high_frequency_share(images) >= NOISE_ENERGY)


def image_statistics(images: np.ndarray) -> dict[str, float]:
    """``mean_std`` (grey levels), ``blank_share`` and ``noise_share`` of uint8 images (n, h, w, 3).

    Raises:
        UsageFault: there is no image, or it is not uint8 RGB.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise UsageFault(f"at least one uint8 image (n, height, width, 3) is needed, not {images.dtype} {images.shape}")
    return {
        "mean_std": float(np.mean([image.std() for image in images])),
        "blank_share": float(blank(images).mean()),
        "noise_share": float(noise(images).mean()),
    }
