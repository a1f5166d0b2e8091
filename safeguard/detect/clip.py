"""Zero-shot detection with CLIP (Radford et al. 2021): which label of a vocabulary fits an image best?

    score(x) = sum over labels c of the concept of softmax_v( s <f(x), g(template(v))> )_c

over the whole vocabulary v, with the checkpoint's own logit scale s, image features f and text features g, both of
unit length. The vocabulary holds what else an image may show; without it every image would show the concept.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.detect.calibration import read_tables
from safeguard.detect.clip_model import CALIBRATION_FILE, ClipModel, locate
from safeguard.errors import UsageFault
from safeguard.policy.consistency import as_read, repeated
from safeguard.results.calibration import Calibration

Label = Annotated[str, Field(min_length=1, max_length=200)]


class ClipConfig(MethodConfig):
    """Settings of the zero-shot detector."""

    checkpoint: Annotated[str, Field(min_length=1)] = "reference"
    """``reference``, a directory in open_clip's format, or a hub id ``owner/name@revision``."""
    vocabulary: list[Label] = Field(default_factory=list)
    """All class labels; empty: those the checkpoint was calibrated with (for the reference, the names of its world)."""
    template: str = "a {label} emoji"
    """Prompt of a label."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Score from which an image is flagged."""

    @field_validator("vocabulary")
    @classmethod
    def _each_once(cls, vocabulary: list[str]) -> list[str]:
        for place, known in repeated(vocabulary):
            raise ValueError(f"{vocabulary[place]!r} is read like {vocabulary[known]!r}; take one out")
        return vocabulary

    @field_validator("template")
    @classmethod
    def _names_the_label(cls, template: str) -> str:
        if "{label}" not in template:
            raise ValueError("the template must contain {label}")
        return template


def label_faults(labels: list[str], vocabulary: list[str]) -> list[str]:
    """What is wrong with labels beside a vocabulary, one sentence each."""
    if not labels:
        return ["CLIP needs at least one label: give the concept labels, for example [dagger, axe]"]
    spelt = {as_read(label): label for label in reversed(vocabulary)}
    found = [
        f"{label!r} is {known!r} in the vocabulary, and two spellings would share the probability: write {known!r}"
        for label in labels
        if (known := spelt.get(as_read(label), label)) != label
    ]
    if not found and set(vocabulary) <= set(labels):
        found.append(
            "the vocabulary holds nothing but these labels, so every image would be flagged: add what else an image "
            "may show to detector.vocabulary"
        )
    return found


def _calibrated(checkpoint: str) -> list[str] | None:
    """The vocabulary that comes with a checkpoint on this machine; none where it is not here, or has none."""
    if checkpoint != "reference" and not Path(checkpoint).is_dir():
        return None
    tables = read_tables(locate(checkpoint) / CALIBRATION_FILE)
    return tables.tables[0].vocabulary if tables else None


class ClipDetector:
    """A CLIP checkpoint, a vocabulary and a threshold.

    Raises:
        UsageFault: no vocabulary, and the checkpoint has no calibration that names one.
        ModelFault: an unusable checkpoint.
        EnvironmentFault: open_clip is missing, or the hub cannot be reached.
    """

    Config: ClassVar[type[ClipConfig]] = ClipConfig

    def __init__(self, config: ClipConfig, device: str = "cpu") -> None:
        self.config = config
        self._clip = ClipModel(config.checkpoint, device)
        self._tables = read_tables(self._clip.directory / CALIBRATION_FILE)
        if not config.vocabulary and not self._tables:
            raise UsageFault(
                "this checkpoint was never calibrated, so the detector needs a vocabulary",
                fix="list what an image may show in the detector's vocabulary",
                where=config.checkpoint,
            )
        self._text_features = lru_cache(maxsize=16)(self._encode_vocabulary)

    @classmethod
    def check_labels(cls, config: ClipConfig, labels: list[str], *, own: bool) -> list[str]:
        """Labels are needed, and each is spelt as the vocabulary spells it: another spelling is another text."""
        vocabulary = config.vocabulary or _calibrated(config.checkpoint)
        if vocabulary is None:
            return []
        return label_faults(labels, vocabulary) if labels or own else []

    @cached_property
    def vocabulary(self) -> list[str]:
        """The class labels without repetitions."""
        calibrated = self._tables.tables[0].vocabulary if self._tables else []
        return list(dict.fromkeys(self.config.vocabulary or calibrated))

    @property
    def threshold(self) -> float:
        """Score from which an image is flagged."""
        return self.config.threshold

    @cached_property
    def digest(self) -> str:
        """SHA-256 over weights, vocabulary, template, threshold and calibration."""
        calibration = self._tables and self._tables.model_dump_json()
        facts = [self._clip.digest, self.vocabulary, self.config.template, self.config.threshold, calibration]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def describe(self) -> str:
        """One line: checkpoint, vocabulary, threshold."""
        return (
            f"CLIP zero-shot, checkpoint {self.config.checkpoint} ({self._clip.digest[:12]}), "
            f"{len(self.vocabulary)} labels as {self.config.template!r}, flagged from {self.threshold:g}"
        )

    def calibration(self, labels: list[str]) -> Calibration | None:
        """Counts from the tables beside the weights that were made with this vocabulary and template."""
        if not self._tables:
            return None
        return self._tables.record(
            labels,
            vocabulary=self._all_labels(labels),
            template=self.config.template,
            threshold=self.threshold,
        )

    def _all_labels(self, labels: list[str]) -> list[str]:
        return list(dict.fromkeys([*self.vocabulary, *labels]))

    def _encode_vocabulary(self, labels: tuple[str, ...]) -> Tensor:
        return self._clip.encode_texts([self.config.template.replace("{label}", label) for label in labels])

    def probabilities(self, images: np.ndarray, labels: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """Softmax over the vocabulary, extended by ``labels`` it lacks: array (n, m) and the m labels."""
        every = self._all_labels(labels or [])
        texts = self._text_features(tuple(every))
        if not len(images):
            return np.zeros((0, len(every))), every
        logits = self._clip.logit_scale * self._clip.encode_images(images) @ texts.T
        return logits.double().softmax(dim=1).numpy(), every

    def scores(self, images: np.ndarray, labels: list[str]) -> np.ndarray:
        """Summed probability of the labels, (n,); see :meth:`safeguard.detect.base.Detector.scores`."""
        if faults := label_faults(labels, self.vocabulary):
            raise UsageFault(faults[0], fix="correct the labels, or detector.vocabulary")
        probabilities, every = self.probabilities(images, labels)
        columns = [every.index(label) for label in dict.fromkeys(labels)]
        total: np.ndarray = probabilities[:, columns].sum(axis=1)
        return total.clip(0, 1)
