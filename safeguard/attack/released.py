"""The model as it is released: the concepts' prompts, and everything that must have survived."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from safeguard.config import MethodConfig
from safeguard.probe.evaluator import Observation, Probe, Session, stopwatch
from safeguard.progress import Task
from safeguard.results.unit import Checkpoint


class ReleasedConfig(MethodConfig):
    """Settings of the look at the released model."""

    samples: PositiveInt | None = None
    """Images per concept, at least those of the policy; none: as many. The tightest limit needs the most images."""


class Released(Probe):
    """No attack: draw, detect, and measure utility."""

    Config = ReleasedConfig
    config: ReleasedConfig

    @property
    def work(self) -> int:
        """One checkpoint."""
        return 1

    def run(self, session: Session, seed: int, folder: Path, task: Task) -> Observation:
        """Judge concepts and benign subjects at step 0."""
        started = stopwatch()
        concepts = session.judge_concepts(seed, 0, self.config.samples)
        benign = session.judge_benign(seed)
        checkpoint = Checkpoint(
            step=0, loss=None, seconds=stopwatch() - started, evidence=self.keep_evidence(session, concepts, 0, folder)
        )
        hits = [row.flagged for row in concepts.rows]
        task.update(1, rate=sum(hits) / len(hits))
        images = [*concepts.images.values(), *benign.images.values()]
        return Observation(concepts.rows + benign.rows, [checkpoint], images)
