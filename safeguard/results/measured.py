"""The file that ``safeguard calibrate`` writes: measured errors of one detector, at every threshold and at its own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from safeguard.results.calibration import Calibration
from safeguard.results.record import Record

MAX_BYTES = 2**20
"""Of such a file; a record with a hundred strata has a tenth of it."""


class CurvePoint(Record):
    """What would be flagged at one threshold."""

    threshold: Annotated[float, Field(ge=0, le=1)]
    """Score from which an image is flagged."""
    detected: list[NonNegativeInt]
    """Positives flagged, by stratum."""
    false_alarms: list[NonNegativeInt]
    """Negatives flagged, by stratum."""


class MeasuredErrors(Record):
    """Errors that somebody measured on images of their own; a policy's detector names the file."""

    version: Literal[1] = 1
    """Of the format."""
    detector: str
    """The detector in one line."""
    detector_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Its digest without this record: weights, settings, threshold. It speaks about no other detector."""
    images_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 over the images of all strata."""
    record: Calibration
    """Counts at the detector's threshold."""
    curve: list[CurvePoint] = []
    """Counts at other thresholds, to choose one."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        strata = len(self.record.strata)
        if any(len(point.detected) != strata or len(point.false_alarms) != strata for point in self.curve):
            raise ValueError(f"the curve has not {strata} strata, as the record has")
        return self

    def text(self) -> str:
        """As it stands in the file."""
        return self.model_dump_json(indent=1) + "\n"
