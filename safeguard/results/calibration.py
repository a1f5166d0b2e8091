"""A detector's measured errors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, model_validator

from safeguard.results.record import Record


class Calibration(Record):
    """How often a detector is right at one threshold, counted on images whose content is known."""

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
