"""A second reading without labels or training: is the drawing that lies nearest to an image one of the concept's?

The distance is perceptual, in the latents of the reference autoencoder, which no detector has part in: images are
brought to full contrast, encoded (4 x 16 x 16), centred per channel and compared by their angle, over shifts of one
cell and mirrored. A nearest neighbour knows neither styles nor names; it stands beside the detector to show where both
agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safeguard.diffusion.model import DiffusionModel

SHIFTS = (-1, 0, 1)
STRONGEST = 0.995
"""Quantile of the ink that is brought to full strength."""


def full_contrast(images: np.ndarray) -> np.ndarray:
    """uint8 images with what was drawn on white, however pale, brought to full strength."""
    ink = 255.0 - images.astype(np.float32)
    strength = np.quantile(ink, STRONGEST, axis=(1, 2, 3), keepdims=True)
    return np.asarray((255 - (ink * 255 / np.maximum(strength, 24)).clip(0, 255)).round().astype(np.uint8))


def _features(model: DiffusionModel, images: np.ndarray) -> Tensor:
    latents, _ = model.encode_images(full_contrast(images))
    return latents - latents.mean(dim=(2, 3), keepdim=True)


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.flatten(1), dim=1)


def nearest(model: DiffusionModel, images: np.ndarray, drawings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest drawing of every image.

    Args:
        model: whose autoencoder is used.
        images, drawings: uint8 (n, h, w, 3) and (m, h, w, 3).

    Returns:
        Row of the nearest drawing (n,), and the cosine of the angle to it (n,).
    """
    shown, best, rows = _unit(_features(model, images)), None, None
    for turned in (drawings, drawings[:, :, ::-1]):
        features = _features(model, np.ascontiguousarray(turned))
        for down in SHIFTS:
            for right in SHIFTS:
                cosines, found = (shown @ _unit(features.roll((down, right), dims=(2, 3))).T).max(dim=1)
                if best is None or rows is None:
                    best, rows = cosines, found
                else:
                    rows = torch.where(cosines > best, found, rows)
                    best = torch.maximum(cosines, best)
    assert rows is not None and best is not None
    return rows.numpy(), best.numpy()


def nearest_is(
    model: DiffusionModel, images: np.ndarray, drawings: np.ndarray, names: Sequence[str | None], wanted: Sequence[str]
) -> np.ndarray:
    """Whether the nearest drawing shows one of the wanted names, bool (n,); ``names`` are those of the drawings."""
    rows, _ = nearest(model, images, drawings)
    return np.array([names[row] in wanted for row in rows], dtype=bool)
