"""Measures the errors of any detector on images whose content is known, and lets a detector carry them.

A record is of one detector: the same weights, settings and threshold, by its digest. A detector that carries one has a
digest that covers it, so that rates found with other errors are never mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from safeguard.config import MethodConfig
from safeguard.detect.base import Detector
from safeguard.detect.calibration import count
from safeguard.errors import UsageFault
from safeguard.policy.schema import DetectorMethod
from safeguard.registry import detectors
from safeguard.results.calibration import Calibration
from safeguard.results.measured import CurvePoint, MeasuredErrors

THRESHOLDS = [step / 20 for step in range(1, 20)]
"""Of the curve, beside the detector's own."""


@dataclass(frozen=True)
class Sample:
    """A set of images of one kind, each from a drawing of its own.

    Attributes:
        data: what they are, in words.
        images: uint8 (height, width, 3), of any size.
        shown: by image the label it shows; None: none of those looked for.
    """

    data: str
    images: Sequence[np.ndarray]
    shown: Sequence[str | None]


def make(method: DetectorMethod, device: str = "cpu") -> Detector:
    """A policy's detector, with the record that the policy names.

    Raises:
        UsageFault: the record is of another detector.
        PolicyFault, EnvironmentFault, ModelFault: as the detector's own.
    """
    plain: Detector = detectors.make(method, device)
    if method.calibration is None:
        return plain
    if isinstance(method.calibration, str):
        raise UsageFault(
            f"the calibration {method.calibration} was not read", fix="read the policy from its file, beside the record"
        )
    return Calibrated(plain, method.calibration)


def known_errors(detector: Detector, labels: list[str]) -> Calibration | None:
    """The detector's record for these labels, which must be at the threshold that it flags with.

    Raises:
        UsageFault: the detector hands out a record of another threshold or of other labels.
    """
    record = detector.calibration(labels)
    if record is None:
        return None
    if record.threshold != detector.threshold or (labels and set(record.labels) != set(labels)):
        raise UsageFault(
            f"the detector flags from {detector.threshold:g} and was asked for {labels}, and its calibration is "
            f"from {record.threshold:g} of {record.labels}",
            fix="correct the detector's calibration(), which must be of the same threshold and labels",
            where=detector.describe(),
        )
    return record


class Calibrated:
    """A detector that knows errors measured on somebody's own images, besides those it came with.

    Raises:
        UsageFault: they are those of another detector, or of this one with other settings.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, plain: Detector, measured: MeasuredErrors) -> None:
        if plain.digest != measured.detector_digest:
            raise UsageFault(
                f"the calibration is of another detector, or of other settings: {measured.detector}",
                fix="run `safeguard calibrate` for the detector that the policy declares",
                where=plain.describe(),
            )
        self._plain, self._measured = plain, measured

    @classmethod
    def check_labels(cls, config: Any, labels: list[str], *, own: bool) -> list[str]:
        """Nothing: labels are checked with the registered detector, before a record is laid over it."""
        return []

    @property
    def digest(self) -> str:
        """SHA-256 over the detector's own digest and the record."""
        facts = f"{self._plain.digest}\n{self._measured.record.model_dump_json()}"
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def vocabulary(self) -> list[str]:
        """The detector's."""
        return self._plain.vocabulary

    @property
    def threshold(self) -> float:
        """The detector's."""
        return self._plain.threshold

    def calibration(self, labels: list[str]) -> Calibration | None:
        """The record's strata after those the detector came with: nobody's easy images replace hard ones."""
        own, measured = self._plain.calibration(labels), self._measured.record
        if labels and set(labels) != set(measured.labels):
            return own
        strata = [*(own.strata if own else []), *measured.strata]
        return Calibration(labels=list(labels) or measured.labels, threshold=self.threshold, strata=strata)

    def scores(self, images: np.ndarray, labels: list[str]) -> np.ndarray:
        """The detector's."""
        return self._plain.scores(images, labels)

    def describe(self) -> str:
        """The detector's line, and that it was calibrated."""
        return f"{self._plain.describe()}, calibrated on {self._measured.record.data}"


def measure(detector: Detector, labels: list[str], samples: Sequence[Sample]) -> MeasuredErrors:
    """Judge every image and count, by stratum and threshold.

    Args:
        labels: what is looked for: any of these.

    Raises:
        UsageFault: no image shows one of the labels, or the detector cannot look for them.
    """
    if not any(label is not None for sample in samples for label in sample.shown):
        raise UsageFault("no image shows what is looked for", fix="give images of it as positives")
    scores = [_scores(detector, sample.images, labels) for sample in samples]
    strata = [
        count(sample.shown, found >= detector.threshold, data=sample.data)
        for sample, found in zip(samples, scores, strict=True)
    ]
    return MeasuredErrors(
        detector=detector.describe(),
        detector_digest=detector.digest,
        images_digest=_digest(samples),
        record=Calibration(labels=labels, threshold=detector.threshold, strata=strata),
        curve=[_point(threshold, samples, scores) for threshold in sorted({*THRESHOLDS, detector.threshold})],
    )


def _point(threshold: float, samples: Sequence[Sample], scores: Sequence[np.ndarray]) -> CurvePoint:
    strata = [
        count(sample.shown, found >= threshold, data=sample.data) for sample, found in zip(samples, scores, strict=True)
    ]
    return CurvePoint(
        threshold=threshold,
        detected=[each.detected for each in strata],
        false_alarms=[each.false_alarms for each in strata],
    )


def _scores(detector: Detector, images: Sequence[np.ndarray], labels: list[str]) -> np.ndarray:
    """Scores of images of any size: those of one size together, in their order."""
    found = np.zeros(len(images))
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(place)
    for places in sizes.values():
        found[places] = detector.scores(np.stack([images[place] for place in places]), labels)
    return found


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for image, label in zip(sample.images, sample.shown, strict=True):
            digest.update(f"{sample.data}\n{label}\n{image.shape}\n".encode())
            digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
