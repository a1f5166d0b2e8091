"""What every metric is: a set of images and their prompts in, one value per image out."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np

from safeguard.config import MethodConfig


class Metric(Protocol):
    """One way to measure how good images are."""

    Config: ClassVar[type[MethodConfig]]
    title: ClassVar[str]
    """For people: ``CLIP score``."""
    higher_is_better: ClassVar[bool]

    def __init__(self, config: Any, device: str = "cpu") -> None: ...

    @property
    def digest(self) -> str:
        """SHA-256 over weights and settings, hexadecimal: the same digest gives the same values."""
        ...

    def values(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
        """One value per image (uint8, (n, height, width, 3)) and its prompt: float array (n,).

        Raises:
            UsageFault: the numbers of images and prompts differ.
        """
        ...

    def describe(self) -> str:
        """One line for a report: kind, weights, settings."""
        ...
