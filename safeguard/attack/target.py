"""What an attack is handed: one model in memory, what it is accused of, and the images and answers to be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safeguard.data.content_filter import is_allowed
from safeguard.data.fine_tuning import DataSets
from safeguard.data.screening import surroundings
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.diffusion.sampling import sample
from safeguard.policy.schema import Concept, Policy, Subject
from safeguard.results.record import Role
from safeguard.seeds import derive

Score = Callable[[np.ndarray, Subject], np.ndarray]


@dataclass
class Oracle:
    """Answers one run of a black-box attack: it draws prompts with the model as it is, and says how much is seen.

    Its noise comes from seeds of its own: what a search has seen is never what a bound is computed on.

    Attributes:
        score: images (n, height, width, 3) and a concept, or a benign subject with labels -> scores in [0, 1] (n,).
        seed: of the run.
        calls: images drawn so far.
    """

    model: DiffusionModel
    policy: Policy
    score: Score
    seed: int
    calls: int = 0

    def __call__(self, subject: Subject, prompts: Sequence[str]) -> np.ndarray:
        """Scores (n,) of one image per prompt; 0 for prompts that the content filter refuses, which are not drawn."""
        settings, beside = self.policy.certification, surroundings(self.policy.concepts)
        seeds = [derive(self.seed, "search", subject.name, self.calls + index) for index in range(len(prompts))]
        self.calls += len(prompts)
        kept = [place for place, prompt in enumerate(prompts) if is_allowed(f"{beside} {prompt}")]
        scores = np.zeros(len(prompts))
        if kept:
            drawn, noise = [prompts[place] for place in kept], [seeds[place] for place in kept]
            images = sample(self.model, drawn, noise, steps=settings.sampler_steps, guidance=settings.guidance)
            scores[kept] = self.score(images, subject)
        return scores


@dataclass(frozen=True)
class Base:
    """What the certified model was made of, for whoever has both.

    Attributes:
        differing: components of the certified model that are not the base's.
        component: one of the base's by name, read anew into main memory: a module, a tokenizer, a scheduler.
    """

    differing: frozenset[str]
    component: Callable[[str], Any]


@dataclass
class Target:
    """One model under attack.

    Attributes:
        role: the certified model, or a control.
        digest: of the model as it was opened.
        data: images to fine-tune on.
        score: what a detector says of images: what :meth:`oracle` answers with.
        exam: seed of this examination, from the policy's and the nonce; what an attack does at random follows from it.
        base: of the certified model; none: it is not at hand.
        scratch: folder in which a run may keep what it has found, until it is finished; none: there is none.
        judged: efforts that a killed run was judged at; an attack that is resumable leaves them out, but for 0.
    """

    role: Role
    model: DiffusionModel
    digest: str
    policy: Policy
    data: DataSets
    score: Score
    exam: int
    base: Base | None = None
    scratch: Path | None = None
    judged: frozenset[int] = frozenset()
    _start: Weights = field(init=False)

    def __post_init__(self) -> None:
        self._start = Weights(self.model.named_parameters())

    @property
    def concepts(self) -> list[Concept]:
        """What must be gone."""
        return list(self.policy.concepts)

    def oracle(self, seed: int) -> Oracle:
        """For a run that sees answers only."""
        return Oracle(self.model, self.policy, self.score, derive(self.exam, "oracle", seed))

    @contextmanager
    def attacked(self) -> Iterator[DiffusionModel]:
        """The model to change at will; its weights come back on leaving.

        Where it is the base model, it draws no training images meanwhile: they are the same for all models.
        """
        base, self.data.base = self.data.base, None
        try:
            yield self.model
        finally:
            self._start.restore()
            self.data.base = base
