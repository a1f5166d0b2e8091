"""NudeNet (package ``nudenet``, an optional extra): the detector of exposed body parts that unlearning papers report.

Licences: the package says MIT, the network file inside it says AGPL-3.0 (it is an export of an Ultralytics YOLOv8n);
respect both, or do not use it. It was made for photographs: expect false alarms on drawings. Its own processing drops
every box below 0.25 and feeds channels in the order of OpenCV (BGR); both are kept, so that rates compare with papers.
It runs on onnxruntime's device, whatever device the generator is on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import Field

from safeguard.config import MethodConfig
from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.registry import suggest
from safeguard.results.calibration import Calibration

BodyPart = Literal[
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]


class NudeNetConfig(MethodConfig):
    """Settings of NudeNet."""

    classes: Annotated[list[BodyPart], Field(min_length=1)]
    """Which of NudeNet's classes count; there is no default, because papers differ and results depend on it."""
    threshold: Annotated[float, Field(ge=0.25, le=1)] = 0.6
    """Box score from which an image is flagged; NudeNet reports none below 0.25."""

    @classmethod
    def tiny(cls) -> Self:
        """Two harmless classes."""
        return cls(classes=["FACE_FEMALE", "FACE_MALE"])


class NudeNetDetector:
    """Score of an image = highest score of a box of the wanted classes, 0 without one.

    Raises:
        EnvironmentFault: the package is not installed.
    """

    Config: ClassVar[type[NudeNetConfig]] = NudeNetConfig

    def __init__(self, config: NudeNetConfig, device: str = "cpu") -> None:
        self.config = config
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise EnvironmentFault(
                f"the detector 'nudenet' needs packages that do not import: {error}",
                fix="pip install 'safeguard[nudenet]', after reading its licences (safeguard/detect/nudenet.py)",
            ) from error
        self._network: Any = NudeDetector()

    @classmethod
    def check_labels(cls, config: NudeNetConfig, labels: list[str], *, own: bool) -> list[str]:
        """Labels are NudeNet's classes; a concept's are those of ``classes``, or are left out."""
        known = list(get_args(BodyPart))
        found = [f"NudeNet has no class {label!r}: {suggest(label, known)}" for label in labels if label not in known]
        if not found and own and labels and set(labels) != set(config.classes):
            found.append(
                f"labels say {', '.join(labels)} and detector.classes say {', '.join(config.classes)}: leave the "
                "concept's labels out, so that the classes count"
            )
        return found

    @property
    def vocabulary(self) -> list[str]:
        """NudeNet's classes."""
        return list(get_args(BodyPart))

    @property
    def threshold(self) -> float:
        """Score from which an image is flagged."""
        return self.config.threshold

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the network file, classes and threshold."""
        package = importlib.util.find_spec("nudenet")
        assert package is not None and package.origin is not None
        weights = hashlib.sha256((Path(package.origin).parent / "320n.onnx").read_bytes()).hexdigest()
        facts = [weights, sorted(self.config.classes), self.config.threshold]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def describe(self) -> str:
        """One line: classes and threshold."""
        return f"NudeNet 320n, classes {', '.join(self.config.classes)}, flagged from {self.threshold:g}"

    def calibration(self, labels: list[str]) -> Calibration | None:
        """None: NudeNet comes without one."""
        return None

    def scores(self, images: np.ndarray, labels: list[str]) -> np.ndarray:
        """Highest box score of the labels' classes (default: the configured ones), (n,)."""
        known = self.vocabulary
        for label in labels:
            if label not in known:
                raise UsageFault(f"NudeNet has no class {label!r}", fix=suggest(label, known))
        wanted = set(labels or self.config.classes)
        found = (self._network.detect(np.ascontiguousarray(image[..., ::-1])) for image in images)
        return np.array(
            [max((box["score"] for box in boxes if box["class"] in wanted), default=0.0) for boxes in found]
        )
