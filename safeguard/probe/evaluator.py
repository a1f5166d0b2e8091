"""Draws images of a model and judges them; nobody else does.

Prompts and noise depend on (policy, nonce, subject, seed) alone (:func:`safeguard.policy.examination.drawn`): images of
all roles and efforts are paired, and those of the search that an attack may run come from other
seeds (:class:`safeguard.attack.target.Oracle`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from safeguard.attack.base import Attempt
from safeguard.cache import address
from safeguard.data.content_filter import check_allowed
from safeguard.data.judging import Judge
from safeguard.detect import measuring
from safeguard.detect.base import Detector
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import from_noise, sample
from safeguard.metrics.base import Metric
from safeguard.policy import examination
from safeguard.policy.schema import Concept, Policy, Subject
from safeguard.registry import metrics
from safeguard.results.plan import StopRule, looks
from safeguard.results.unit import ImageRow
from safeguard.seeds import spread


class Drawn(NamedTuple):
    """Images of one subject: (n, height, width, 3), with the prompt and the noise seed of each."""

    prompts: list[str]
    seeds: list[int]
    images: np.ndarray


@dataclass(frozen=True)
class Look:
    """What was found in one attempt.

    Attributes:
        rows: one per image and judgement.
        images: of each subject.
        refused: prompts of the attack that the content filter refused; they were not drawn.
    """

    rows: list[ImageRow]
    images: dict[str, np.ndarray]
    refused: int = 0

    def rate(self, policy: Policy) -> float:
        """Share of the concepts' images that were flagged."""
        names = {concept.name for concept in policy.concepts}
        hits = [row.flagged for row in self.rows if row.subject in names]
        return sum(hits) / len(hits)


class Evaluator:
    """The policy's detectors and metrics.

    Args:
        nonce: of the examination; prompts and noise follow from it.

    Attributes:
        detectors: of every concept, by its name.
        metrics: by name.
    """

    def __init__(self, policy: Policy, device: str, nonce: str) -> None:
        self.policy, self.nonce = policy, nonce
        self.detectors: dict[str, Detector] = {c.name: measuring.make(c.detector, device) for c in policy.concepts}
        self.metrics: dict[str, Metric] = {m.name: metrics.make(m, device) for m in policy.utility.metrics}
        declared = policy.utility.detector
        self._benign: Detector | None = measuring.make(declared, device) if declared else None

    def digests(self) -> dict[str, dict[str, str]]:
        """Of all that judges, by what it judges."""
        return {
            "detectors": {name: detector.digest for name, detector in self._judges().items()},
            "metrics": {name: metric.digest for name, metric in self.metrics.items()},
        }

    def thresholds(self) -> dict[str, float]:
        """Of the same detectors: the score from which an image is flagged."""
        return {name: float(detector.threshold) for name, detector in self._judges().items()}

    def _judges(self) -> dict[str, Detector]:
        return self.detectors | ({examination.BENIGN: self._benign} if self._benign else {})

    def score(self, images: np.ndarray, subject: Subject) -> np.ndarray:
        """How much each image shows a concept, or a benign subject with labels, in [0, 1] (n,)."""
        detector = self.detectors.get(subject.name) or self._benign_detector(subject)
        assert detector is not None, f"nothing judges {subject.name}, which has no labels"
        return detector.scores(images, subject.labels)

    def flags(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """By concept, whether its own detector flags each of the images (n,)."""
        pairs = ((concept, self.detectors[concept.name]) for concept in self.policy.concepts)
        return {each.name: detector.scores(images, each.labels) >= detector.threshold for each, detector in pairs}

    def judge(self) -> Judge:
        """The concepts' detectors, to look at training images with."""
        facts = [[each.name, each.labels, self.detectors[each.name].digest] for each in self.policy.concepts]
        return Judge(address([facts, self.thresholds()]), self.flags)

    def look(
        self,
        model: DiffusionModel,
        attempt: Attempt,
        seed: int,
        *,
        samples: int | None = None,
        everything: bool = False,
        stops: Sequence[StopRule] = (),
    ) -> Look:
        """Draw and judge every concept, and on request every related and retained subject.

        Of a model under attack the policy's witness is looked at besides: one that broke draws no concept either.

        Args:
            samples: images per concept, at least those of the policy; none: as many.
            everything: whether benign subjects are looked at as well, with the policy's number of images.
            stops: when enough images of a concept are drawn; none: when all are.
        """
        rows: list[ImageRow] = []
        images: dict[str, np.ndarray] = {}
        refused = 0
        if attempt.prompts is not None:
            allowed, refused = attempt.prompts.screened(self.policy.concepts)
            attempt = replace(attempt, prompts=allowed)
        with self._precision(model):
            for concept in self.policy.concepts:
                found, drawn = self._of_concept(model, concept, seed, samples, attempt, stops)
                rows += found
                images[concept.name] = drawn
            if everything:
                rows += self._benign_rows(model, attempt, seed, images)
            elif attempt.effort and self.policy.witness:
                rows += self._witness_rows(model, self.policy.witness, attempt, seed, images)
        return Look(rows, images, refused)

    def _of_concept(
        self,
        model: DiffusionModel,
        concept: Concept,
        seed: int,
        samples: int | None,
        attempt: Attempt,
        stops: Sequence[StopRule],
    ) -> tuple[list[ImageRow], np.ndarray]:
        """Rows and images, drawn from look to look until every requirement that judges them is decided."""
        rows: list[ImageRow] = []
        images: list[np.ndarray] = []
        for decisions in looks(stops, concept.name, attempt.effort) or [[]]:
            most = decisions[0].samples if decisions else 0
            drawn = self._draw(model, concept, seed, samples, attempt, most, len(rows))
            rows += self._judge(self.detectors[concept.name], concept.name, concept.labels, drawn, attempt.effort)
            images.append(drawn.images)
            flagged = sum(row.flagged for row in rows)
            if all(decision.decides(flagged) for decision in decisions):
                break
        return rows, np.concatenate(images)

    @contextmanager
    def _precision(self, model: DiffusionModel) -> Iterator[None]:
        before, model.execution.precision = model.execution.precision, self.policy.certification.precision
        try:
            yield
        finally:
            model.execution.precision = before

    def _draw(
        self,
        model: DiffusionModel,
        subject: Subject,
        seed: int,
        samples: int | None,
        attempt: Attempt,
        most: int = 0,
        first: int = 0,
    ) -> Drawn:
        """Images of a subject, up to ``most`` if given, from the ``first``; more samples begin with those of fewer."""
        settings, found = self.policy.certification, attempt.prompts
        prompts, seeds, order = examination.drawn(self.policy, self.nonce, subject, seed, samples, most)
        count, prompts, seeds = len(seeds), prompts[first:], seeds[first:]
        texts = list(found.texts.get(subject.name, [])) if found else []
        check_allowed(texts or prompts)
        drawn: list[str] | Conditioning
        if found is not None and found.states is not None and subject.name in found.states:
            places = [int(place) for place in spread([str(i) for i in range(len(texts))], count, order)[first:]]
            prompts, drawn = [texts[i] for i in places], found.states[subject.name][torch.tensor(places)]
        else:
            drawn = prompts = spread(texts, count, order)[first:] if texts else prompts
        images = sample(
            model,
            drawn,
            seeds,
            steps=settings.sampler_steps,
            guidance=settings.guidance,
            sampler=attempt.sampler or from_noise,
        )
        return Drawn(prompts, seeds, images)

    def _judge(
        self,
        detector: Detector | None,
        name: str,
        labels: list[str],
        drawn: Drawn,
        effort: int,
        measured: bool = False,
    ) -> list[ImageRow]:
        """One row per image; without a detector only the metrics count."""
        scores = detector.scores(drawn.images, labels) if detector else np.zeros(len(drawn.images))
        return [
            ImageRow(
                subject=name,
                effort=effort,
                prompt=prompt,
                seed=seed,
                image=_digest(image),
                score=float(score),
                flagged=detector is not None and float(score) >= detector.threshold,
                metrics=values,
            )
            for prompt, seed, image, score, values in zip(*drawn, scores, self._measure(drawn, measured), strict=True)
        ]

    def _measure(self, drawn: Drawn, measured: bool) -> list[dict[str, float]]:
        """The metrics of each image; nothing where they are not asked for."""
        columns = {
            name: metric.values(drawn.images, drawn.prompts).tolist()
            for name, metric in self.metrics.items()
            if measured
        }
        return [{name: values[place] for name, values in columns.items()} for place in range(len(drawn.prompts))]

    def _benign_rows(
        self, model: DiffusionModel, attempt: Attempt, seed: int, images: dict[str, np.ndarray]
    ) -> list[ImageRow]:
        """Related and retained subjects: are they still drawn, and does a detector see a concept in the retained?"""
        rows: list[ImageRow] = []
        found: dict[str, Drawn] = {}
        for subject in [*self.policy.related, *self.policy.retain]:
            drawn = found[subject.name] = self._draw(model, subject, seed, None, attempt)
            images[subject.name] = drawn.images
            detector = self._benign_detector(subject)
            if detector or self.metrics:
                rows += self._judge(detector, subject.name, subject.labels, drawn, attempt.effort, measured=True)
        for concept in self.policy.concepts:
            for subject in self.policy.retain:
                name, own = f"{concept.name}@{subject.name}", self.detectors[concept.name]
                rows += self._judge(own, name, concept.labels, found[subject.name], attempt.effort)
        return rows

    def _witness_rows(
        self, model: DiffusionModel, witness: Subject, attempt: Attempt, seed: int, images: dict[str, np.ndarray]
    ) -> list[ImageRow]:
        """The witness, judged as it is in the released model."""
        drawn = self._draw(model, witness, seed, None, attempt, most=examination.WITNESSES)
        images[witness.name] = drawn.images
        return self._judge(self._benign_detector(witness), witness.name, witness.labels, drawn, attempt.effort, True)

    def _benign_detector(self, subject: Subject) -> Detector | None:
        """None: nothing but metrics judges the subject."""
        judged_by = examination.judge(self.policy, subject)
        return self._judges()[judged_by] if judged_by else None


def _digest(image: np.ndarray) -> str:
    """sha256 (hexadecimal) of an image's pixels, uint8 (height, width, 3)."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
