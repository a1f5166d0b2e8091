"""CLIP score (Hessel et al. 2021): does the image show what the prompt says?

Here the plain cosine <f(x), g(p)> of unit image and text features, without the paper's factor 2.5 and clipping at 0.
Values compare only within one checkpoint.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from safeguard.config import MethodConfig
from safeguard.detect.clip_model import ClipModel
from safeguard.errors import UsageFault


class ClipScoreConfig(MethodConfig):
    """Settings of the CLIP score."""

    checkpoint: str = "reference"
    """``reference``, a directory in open_clip's format, or a hub id ``owner/name@revision``."""


class ClipScore:
    """Cosine of images and prompts under one checkpoint."""

    Config: ClassVar = ClipScoreConfig
    title: ClassVar = "CLIP score"
    higher_is_better: ClassVar = True

    def __init__(self, config: ClipScoreConfig, device: str = "cpu") -> None:
        self.config = config
        self._clip = ClipModel(config.checkpoint, device)

    @property
    def digest(self) -> str:
        """SHA-256 over configuration and weights."""
        return self._clip.digest

    def values(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
        """Cosine in [-1, 1] of image i (uint8, (n, h, w, 3)) and prompt i: (n,)."""
        if len(images) != len(prompts):
            raise UsageFault(f"{len(images)} images for {len(prompts)} prompts")
        if not prompts:
            return np.zeros(0)
        different = list(dict.fromkeys(prompts))
        rows = [different.index(prompt) for prompt in prompts]
        texts = self._clip.encode_texts(different)[rows]
        cosine: np.ndarray = (self._clip.encode_images(images) * texts).sum(dim=1).numpy()
        return cosine.astype(np.float64)

    def describe(self) -> str:
        """Kind and checkpoint."""
        return f"CLIP score, {self.config.checkpoint} ({self.digest[:12]})"
