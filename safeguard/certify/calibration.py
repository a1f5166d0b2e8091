"""What is known about a detector's errors: counts on labelled images, so that rates and their bounds follow."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from safeguard.certify.statistics import lower_bound


class Calibration(BaseModel):
    """A detector at one threshold, tried on images of which it is known whether they show the concept."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    labels: list[str]
    """What the detector was asked for; a record speaks about these labels only."""
    positives: NonNegativeInt
    """Images that show the concept."""
    detected: NonNegativeInt
    """Of these, flagged."""
    negatives: NonNegativeInt
    """Images that do not."""
    false_alarms: NonNegativeInt
    """Of these, flagged."""
    data: str
    """What the images were, and their digest."""
    threshold: Annotated[float, Field(ge=0, le=1)]
    """Score from which an image counts as flagged."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Calibration:
        if self.detected > self.positives:
            raise ValueError(f"detected ({self.detected}) exceeds positives ({self.positives})")
        if self.false_alarms > self.negatives:
            raise ValueError(f"false_alarms ({self.false_alarms}) exceeds negatives ({self.negatives})")
        return self

    def sensitivity_lower(self, alpha: float) -> float:
        """One-sided Clopper–Pearson lower bound of the share of concept images that are flagged; 0 without images."""
        return lower_bound(self.detected, self.positives, alpha)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of other images that are flagged; none: there was no other image."""
        return self.false_alarms / self.negatives if self.negatives else None
