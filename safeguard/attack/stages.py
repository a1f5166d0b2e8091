"""What attacks share that fine-tune on one data set after the other, in one run with one axis."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import PositiveInt, model_validator

from safeguard.attack.adapting import Adapting, AdaptingConfig
from safeguard.attack.base import Attempt
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.finetune.base import FineTuner, Run, make_optimizer
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class Stage(MethodConfig):
    """Some steps on one data set."""

    data: FineTuningData
    """What is fine-tuned on meanwhile."""
    steps: PositiveInt = 50
    """Optimiser steps."""


class StagedConfig(AdaptingConfig):
    """How a fine-tune in stages runs; which they are, every attack says itself.

    What is trained is carried from stage to stage. ``training.steps``, over which the learning rate takes its course,
    and ``checkpoints`` count the steps of all stages together.
    """

    optimizer_state: Literal["carried", "fresh"] = "carried"
    """Whether a stage begins with the moments that the one before has left, or with none."""

    def course(self) -> list[Stage]:
        """The stages, one after the other; the concept's come last."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its stages are")

    @model_validator(mode="after")
    def _adds_up(self) -> StagedConfig:
        total = sum(stage.steps for stage in self.course())
        if total != self.training.steps:
            raise ValueError(f"the stages have {total} steps together, and training.steps is {self.training.steps}")
        return self


C = TypeVar("C", bound=StagedConfig)


class Staged(Adapting[C]):
    """Fine-tune in stages, and stop at every checkpoint."""

    def learnt(self) -> list[FineTuningData]:
        """Those of all stages."""
        found: list[FineTuningData] = []
        for stage in self.config.course():
            found += [stage.data] if stage.data not in found else []
        return found

    def cost(self) -> Cost:
        """Its steps, and the loss of the last stage's images at every checkpoint."""
        return self.cost_of(self.config.course()[-1].data.size)

    def sets(self, target: Target, seed: int) -> dict[str, LatentSet]:
        """Its training sets by their descriptions."""
        return {described.model_dump_json(): target.data.get(described, seed) for described in self.learnt()}

    def begun(self, target: Target, tuner: FineTuner, sets: Mapping[str, LatentSet], seed: int) -> Run:
        """The fine-tune before its first step."""
        first = self.config.course()[0].data.model_dump_json()
        own = derive(target.exam, self.probe, seed)
        return Run(target.model, sets[first], tuner, self.config.training, seed=own)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Adapt a copy of the weights in memory; they are restored and the adapted ones dropped."""
        config, sets, tuner = self.config, self.sets(target, seed), self.ready(target, seed)
        stages = [(sets[stage.data.model_dump_json()], stage.steps) for stage in config.course()]
        with target.attacked():
            try:
                begun = self.begun(target, tuner, sets, seed)
                course = in_stages(begun, stages, fresh=config.optimizer_state == "fresh")
                yield from self.attempts(target, course, stages[-1][0], tuner, seed)
            finally:
                tuner.detach(target.model)


def in_stages(run: Run, stages: Sequence[tuple[LatentSet, int]], *, fresh: bool = False) -> Generator[int]:
    """A fine-tune under way, on one set after the other, for so many steps each.

    Args:
        fresh: whether every stage begins with an optimiser that has seen nothing.

    Yields:
        0 before the first step, then the number of steps done, over all stages.
    """
    yield 0
    done = 0
    for data, steps in stages:
        run.data = data
        if fresh and done:
            run.optimizer = make_optimizer(run.training, run.parameters)
        for _ in range(steps):
            run.step()
            done += 1
            yield done
