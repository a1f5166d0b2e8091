"""What attacks share that adapt the weights step by step: settings, checkpoints, and the way along them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveInt, model_validator

from safeguard.attack.base import Attack, Attempt, Prompts
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source, Training
from safeguard.data.fine_tuning import DataSets
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner, fine_tune
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive


class AdaptingConfig(MethodConfig):
    """How the weights are adapted, and when somebody looks."""

    method: FineTuningMethod = FineTuningMethod(name="full")
    """Fine-tuning method with its settings."""
    training: Training = Training()
    """How it runs; its steps are the budget."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 20, 50, 100, 200]
    """Steps after which the concepts are looked for; step 0 always is (the placebo)."""

    @model_validator(mode="after")
    def _within_budget(self) -> AdaptingConfig:
        if sorted(set(self.checkpoints)) != list(self.checkpoints) or self.checkpoints[-1] > self.training.steps:
            raise ValueError("checkpoints must ascend and end within the steps")
        return self


C = TypeVar("C", bound=AdaptingConfig)


class Adapting(Attack[C]):
    """Adapt the weights, and stop at every checkpoint."""

    axis: ClassVar = "fine-tuning steps"

    def efforts(self) -> list[int]:
        """Step 0 and every checkpoint."""
        return [0, *self.config.checkpoints]

    def tuner(self) -> FineTuner:
        """The method, ready to use."""
        return finetuners.make(self.config.method)

    def adaptation(self) -> tuple[FineTuningMethod, Training]:
        """The method and how it runs."""
        return self.config.method, self.config.training

    def learnt(self) -> list[FineTuningData]:
        """What the base model draws for it to learn, each set once; none: it has no such images."""
        return []

    def beside(self) -> list[FineTuningData]:
        """What the base model draws because the method asks for it besides."""
        found = self.tuner().beside
        return [] if found is None else [found]

    def drawn(self) -> list[FineTuningData]:
        """All that the base model draws, each set once."""
        learnt = self.learnt()
        return [*learnt, *(data for data in self.beside() if data not in learnt)]

    def sources(self) -> list[Source]:
        """Those of its images."""
        return list(dict.fromkeys(source for data in self.drawn() for source in data.shares))

    def training_set(self) -> str:
        """The descriptions of its images."""
        return "\n".join(data.model_dump_json() for data in self.drawn())

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training sets."""
        for described in self.drawn():
            data.get(described, seed)

    def needs(self) -> Needs:
        """Weights, gradients, its steps, and its images of the concept."""
        images = sum(data.counts().get("concept", 0) for data in self.learnt())
        return Needs(weights=True, gradients=True, steps=self.config.checkpoints[-1], images=images)

    def cost_of(self, measured: int, calls: int = 0) -> Cost:
        """Every step sees its batches; at every checkpoint the loss of so many images is measured.

        Whenever the method asks for images besides, it sees as many of them.

        Args:
            measured: those images.
            calls: rows that go through the denoiser for something else.
        """
        training, steps = self.config.training, self.config.checkpoints[-1]
        rows = steps * training.batch_size * training.accumulation + len(self.efforts()) * measured
        return Cost(
            training_images=sum(data.size for data in self.drawn()),
            steps=steps,
            network_calls=rows * (1 + len(self.beside())) + calls,
        )

    def ready(self, target: Target, seed: int) -> FineTuner:
        """The method with the images that it asks for besides."""
        tuner = self.tuner()
        for described in self.beside():
            tuner.preserve(target.data.get(described, seed))
        return tuner

    def adapted(
        self,
        target: Target,
        data: LatentSet,
        tuner: FineTuner,
        seed: int,
        *,
        measured: FineTuner | None = None,
    ) -> Generator[Attempt, None, None]:
        """Adapt a copy of the weights in memory; they are restored and the adapted ones dropped.

        Args:
            measured: whose loss is reported; none: the one that is descended.
        """
        training, own = self.config.training, derive(target.exam, self.probe, seed)
        with target.attacked() as model, closing(fine_tune(model, data, tuner, training, seed=own)) as course:
            yield from self.attempts(target, (step for step, _ in course), data, measured or tuner, seed)

    def attempts(
        self, target: Target, course: Iterable[int], data: LatentSet, tuner: FineTuner, seed: int
    ) -> Generator[Attempt, None, None]:
        """One at every checkpoint of a course of steps, with the loss of a method over the data."""
        efforts, noise = self.efforts(), derive(target.exam, "training loss", seed)
        for step in course:
            if step in efforts:
                loss = training_loss(target.model, data, tuner, noise)
                yield Attempt(step, self.asked(target, tuner) if step else None, loss)
            if step == efforts[-1]:
                break

    def asked(self, target: Target, tuner: FineTuner) -> Prompts | None:
        """The concepts' prompts as one who learnt them writes them; none: as the policy does."""
        given = {concept.name: concept.prompt_list for concept in target.concepts}
        written = {name: tuner.prompts(prompts) for name, prompts in given.items()}
        learnt = any("concept" in data.shares for data in self.learnt())
        return Prompts(written) if learnt and written != given else None


@torch.no_grad()
def training_loss(model: DiffusionModel, data: LatentSet, tuner: FineTuner, seed: int) -> float:
    """The method's loss over all training images: one draw of posterior, timestep and noise each, all alike."""
    generator = torch.Generator().manual_seed(seed)

    def work() -> float:
        batch = data.rows(torch.arange(len(data)), generator)
        named = replace(batch, captions=tuner.captions(batch.captions, generator))
        return tuner.loss(model, named, generator).item()

    return model.execution.within_memory(work, generator)
