"""What every detector is: images and labels in, one score per image out, with an address for what it is.

An image is *flagged* when its score reaches the detector's threshold.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from safeguard.config import MethodConfig


class Calibration(BaseModel):
    """How often a detector is right at one threshold, counted on images whose content is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    labels: list[str]
    """What was looked for: any of these; a record speaks about these labels only."""
    positives: NonNegativeInt
    """Images that show one of the labels."""
    detected: NonNegativeInt
    """Positives that were flagged."""
    negatives: NonNegativeInt
    """Images that show none."""
    false_alarms: NonNegativeInt
    """Negatives that were flagged."""
    data: str
    """What the images were, in words."""
    threshold: Annotated[float, Field(ge=0, le=1)]
    """The score from which an image counts as flagged."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Calibration:
        if self.detected > self.positives:
            raise ValueError(f"detected ({self.detected}) exceeds positives ({self.positives})")
        if self.false_alarms > self.negatives:
            raise ValueError(f"false_alarms ({self.false_alarms}) exceeds negatives ({self.negatives})")
        return self

    @property
    def false_positive_rate(self) -> float | None:
        """Share of negatives that were flagged; None without negatives."""
        return self.false_alarms / self.negatives if self.negatives else None


class Detector(Protocol):
    """One way to tell whether an image shows a concept."""

    Config: ClassVar[type[MethodConfig]]

    def __init__(self, config: Any, device: str = "cpu") -> None: ...

    @property
    def digest(self) -> str:
        """SHA-256 over weights and settings, hexadecimal: the same digest gives the same scores."""
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
