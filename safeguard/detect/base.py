"""What every detector is: images and labels in, one score per image out, with an address for what it is.

An image is *flagged* when its score reaches the detector's threshold.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np

from safeguard.config import MethodConfig
from safeguard.results.calibration import Calibration


class Detector(Protocol):
    """One way to tell whether an image shows a concept."""

    Config: ClassVar[type[MethodConfig]]
    """Its settings, ``threshold`` among them."""

    def __init__(self, config: Any, device: str = "cpu") -> None: ...

    @classmethod
    def check_labels(cls, config: Any, labels: list[str], *, own: bool) -> list[str]:
        """What is wrong with the labels of a subject, one sentence each that says what to do; no image is needed.

        Args:
            config: the detector's settings, checked.
            labels: of a concept or of a benign subject.
            own: whether they are a concept's, whose detector this is, so that settings may speak of them as well.
        """
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over weights, settings and calibration, hexadecimal: the same digest gives the same scores and the
        same error rates."""
        ...

    @property
    def vocabulary(self) -> list[str]:
        """The labels it knows. It refuses others, or scores them and has no calibration for them."""
        ...

    @property
    def threshold(self) -> float:
        """Score in [0, 1] from which an image is flagged."""
        ...

    def calibration(self, labels: list[str]) -> Calibration | None:
        """Measured error rates for this set of labels, None where nobody measured them."""
        ...

    def scores(self, images: np.ndarray, labels: list[str]) -> np.ndarray:
        """How much each image shows any of the labels.

        Args:
            images: uint8 (n, height, width, 3), RGB.
            labels: what to look for, in the detector's words; an empty list means its own default where it has one.

        Returns:
            float array (n,) in [0, 1].

        Raises:
            UsageFault: a label, or the lack of one, that the detector cannot work with.
        """
        ...

    def describe(self) -> str:
        """One line for a report: kind, weights, settings."""
        ...
