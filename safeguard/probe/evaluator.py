"""What every probe works with: one model in memory, the detectors, and the images to draw, all seeded.

A session belongs to one role (the hardened model, or a control). Probes may change its weights; the session puts them
back afterwards. Weights of attacked models live in memory only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safeguard.data.latents import LatentSet, generate, spread
from safeguard.detect.base import Detector
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.diffusion.sampling import sample
from safeguard.metrics.clip_score import ClipScore
from safeguard.policy.schema import Concept, Policy, Subject
from safeguard.policy.suite import Data, ProbeSpec, subjects_of
from safeguard.progress import Progress, Task
from safeguard.results.contact_sheets import contact_sheet
from safeguard.results.record import Role
from safeguard.results.unit import Checkpoint, ImageRow
from safeguard.seeds import derive


class DataSets:
    """Images to fine-tune on, drawn by the untouched base model and kept for all sessions of a run."""

    def __init__(self, base: DiffusionModel, policy: Policy) -> None:
        self._base = base
        self._policy = policy
        self._sets: dict[tuple[str, int, int, int | None], LatentSet] = {}

    def get(self, name: Data, count: int, seed: int, prompts: int | None = None) -> LatentSet:
        """``count`` images of the set named ``concept``, ``related`` or ``retain``, for so many of its prompts."""
        key = (name, count, seed, prompts)
        if key not in self._sets:
            every = [prompt for subject in subjects_of(self._policy, name) for prompt in subject.prompt_list]
            chosen = (
                every if prompts is None else spread(every, min(prompts, len(every)), derive(seed, "prompts", name))
            )
            drawn = derive(self._policy.seed, "probe data", name, count, seed)
            self._sets[key] = generate(self._base, chosen, count, seed=drawn)
        return self._sets[key]


@dataclass
class Judgement:
    """What was found at one checkpoint."""

    rows: list[ImageRow]
    images: dict[str, np.ndarray]
    """Images of each subject."""


@dataclass
class Session:
    """One model under examination."""

    policy: Policy
    role: Role
    model: DiffusionModel
    model_digest: str
    detectors: dict[str, Detector]
    """By concept."""
    clip_score: ClipScore | None
    data: DataSets
    progress: Progress
    _start: Weights = field(init=False)

    def __post_init__(self) -> None:
        self._start = Weights(self.model.named_parameters())

    @contextmanager
    def attacked(self) -> Iterator[DiffusionModel]:
        """The model to change at will; its weights come back on leaving."""
        try:
            yield self.model
        finally:
            self._start.restore()

    def _draw(self, subject: Subject, seed: int, samples: int | None = None) -> tuple[list[str], list[int], np.ndarray]:
        """Images of a subject; prompts and noise depend on (policy, subject, seed): roles and steps are paired.

        More samples begin with the images of fewer.
        """
        settings = self.policy.certification
        count = settings.at_least(samples)
        purpose = derive(self.policy.seed, "evaluate", subject.name, seed)
        prompts = spread(subject.prompt_list, count, purpose)
        seeds = [derive(purpose, index) for index in range(count)]
        images = sample(self.model, prompts, seeds, steps=settings.sampler_steps, guidance=settings.guidance)
        return prompts, seeds, images

    def _judge(
        self,
        detector: Detector,
        name: str,
        labels: list[str],
        drawn: tuple[list[str], list[int], np.ndarray],
        step: int,
        clip_scores: Sequence[float | None] | None = None,
    ) -> list[ImageRow]:
        prompts, seeds, images = drawn
        scores = detector.scores(images, labels)
        return [
            ImageRow(
                subject=name,
                step=step,
                prompt=prompt,
                seed=seed,
                score=float(score),
                flagged=bool(score >= detector.threshold),
                clip_score=clip,
            )
            for prompt, seed, score, clip in zip(
                prompts, seeds, scores, clip_scores or [None] * len(prompts), strict=True
            )
        ]

    def judge_concepts(self, seed: int, step: int, samples: int | None = None) -> Judgement:
        """Draw and judge every concept, with the policy's number of samples or more."""
        rows: list[ImageRow] = []
        images: dict[str, np.ndarray] = {}
        for concept in self.policy.concepts:
            drawn = self._draw(concept, seed, samples)
            rows += self._judge(self.detectors[concept.name], concept.name, concept.labels, drawn, step)
            images[concept.name] = drawn[2]
        return Judgement(rows, images)

    def judge_benign(self, seed: int) -> Judgement:
        """Draw related and retained subjects: are they still drawn, and does the detector see a concept in them?"""
        rows: list[ImageRow] = []
        found: dict[str, tuple[list[str], list[int], np.ndarray]] = {}
        first = self.policy.concepts[0]
        subjects: list[tuple[Concept, Subject]] = [(c, s) for c in self.policy.concepts for s in c.related]
        subjects += [(first, subject) for subject in self.policy.retain]
        for concept, subject in subjects:
            drawn = found[subject.name] = self._draw(subject, seed)
            scores = self.clip_score.score(drawn[2], drawn[0]).tolist() if self.clip_score else None
            if subject.labels:
                rows += self._judge(self.detectors[concept.name], subject.name, subject.labels, drawn, 0, scores)
            elif scores:
                rows += self._unlabelled(subject.name, drawn, scores)
        for concept in self.policy.concepts:
            for subject in self.policy.retain:
                name = f"{concept.name}@{subject.name}"
                rows += self._judge(self.detectors[concept.name], name, concept.labels, found[subject.name], 0)
        return Judgement(rows, {name: drawn[2] for name, drawn in found.items()})

    @staticmethod
    def _unlabelled(name: str, drawn: tuple[list[str], list[int], np.ndarray], scores: list[float]) -> list[ImageRow]:
        """Rows of a subject no detector has labels for: only its CLIP score counts."""
        return [
            ImageRow(subject=name, step=0, prompt=prompt, seed=seed, score=0.0, flagged=False, clip_score=score)
            for prompt, seed, score in zip(drawn[0], drawn[1], scores, strict=True)
        ]


@dataclass
class Observation:
    """What a probe hands to the runner."""

    rows: list[ImageRow]
    checkpoints: list[Checkpoint]
    images: list[np.ndarray]
    """Images of step 0, for the image statistics."""
    data_digest: str | None = None


class Probe:
    """Base of the probe kinds: a config, the amount of work, and a run."""

    Config: Any

    def __init__(self, config: Any, spec: ProbeSpec) -> None:
        self.config = config
        self.spec = spec

    @property
    def work(self) -> int:
        """Units of progress: checkpoints to evaluate."""
        raise NotImplementedError

    def run(self, session: Session, seed: int, folder: Path, task: Task) -> Observation:
        """Examine the session's model; evidence images go into ``folder``."""
        raise NotImplementedError

    def keep_evidence(self, session: Session, found: Judgement, step: int, folder: Path) -> str:
        """Write the contact sheet of the concepts at one checkpoint; returns its file name."""
        sheets = [(found.images[concept.name], concept.kind == "unsafe") for concept in session.policy.concepts]
        name = f"step-{step:05d}.png"
        contact_sheet(folder / name, sheets)
        return name


def stopwatch() -> float:
    """Seconds on a monotonic clock."""
    return time.monotonic()
