"""A downstream fine-tune, benign or malicious, stopped at along its steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Annotated, ClassVar, Self

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

FEW, LARGE = 20, 16
"""Images of a small set; images in a large batch."""


class FineTuneConfig(MethodConfig):
    """Settings of a fine-tune."""

    data: FineTuningData
    """What is fine-tuned on: ``concept``, ``related``, ``retain``, or more about it."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """Fine-tuning method with its settings."""
    training: Training = Training()
    """How it runs; its steps are the budget."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 20, 50, 100, 200]
    """Steps after which the concepts are looked for; step 0 always is (the placebo)."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        training = Training(steps=2, learning_rate=1e-3, batch_size=2)
        return cls(data=FineTuningData(shares={"concept": 1}, images=3), training=training, checkpoints=[1, 2])

    @model_validator(mode="after")
    def _within_budget(self) -> FineTuneConfig:
        if sorted(set(self.checkpoints)) != list(self.checkpoints) or self.checkpoints[-1] > self.training.steps:
            raise ValueError("checkpoints must ascend and end within the steps")
        return self


class FineTune(Attack[FineTuneConfig]):
    """Fine-tune on a data set, and stop at every checkpoint."""

    Config: ClassVar = FineTuneConfig
    axis: ClassVar = "fine-tuning steps"

    def efforts(self) -> list[int]:
        """Step 0 and every checkpoint."""
        return [0, *self.config.checkpoints]

    def _tuner(self) -> FineTuner:
        return finetuners.make(self.config.method)

    def _images(self) -> list[FineTuningData]:
        """What it learns, and what its method needs beside."""
        beside = self._tuner().beside
        return [self.config.data] if beside is None else [self.config.data, beside]

    def sources(self) -> list[Source]:
        """Those of its images."""
        return list(dict.fromkeys(source for images in self._images() for source in images.shares))

    def training_set(self) -> str:
        """The description of its images."""
        return "\n".join(images.model_dump_json() for images in self._images())

    def cost(self) -> Cost:
        """Every step sees its batches; at every checkpoint the loss of all images is measured.

        Where a method needs images beside, as many of them are seen each time.
        """
        training, images, steps = self.config.training, self._images(), self.config.checkpoints[-1]
        calls = steps * training.batch_size * training.accumulation + len(self.efforts()) * self.config.data.size
        drawn = sum(part.size for part in images)
        return Cost(training_images=drawn, steps=steps, network_calls=calls * len(images))

    def needs(self) -> Needs:
        """Weights, gradients, its steps, and its images of the concept."""
        images = self.config.data.counts().get("concept", 0)
        return Needs(weights=True, gradients=True, steps=self.config.checkpoints[-1], images=images)

    def covers(self) -> list[str]:
        """By whose images it trains on, how many, and how."""
        data, training = self.config.data, self.config.training
        adapter = self._tuner().adds_parameters
        how = "adapter" if adapter else "full"
        if "concept" not in data.shares:
            return [f"{'related' if 'related' in data.shares else 'unrelated'}-{how}"]
        if len(data.shares) > 1:
            return ["contaminated"]
        found = {
            "many-prompts": data.prompts is None and not adapter,
            "one-prompt": data.prompts == 1 and not adapter,
            "few-images": data.size <= FEW,
            "concept-adapter": adapter,
            "warm-up": training.warm_up > 0,
            "large-batches": training.batch_size * training.accumulation >= LARGE,
        }
        return [kind for kind, it_is in found.items() if it_is]

    def adaptation(self) -> tuple[FineTuningMethod, Training]:
        """The method and how it runs."""
        return self.config.method, self.config.training

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training sets."""
        for images in self._images():
            data.get(images, seed)

    def descended(self, tuner: FineTuner) -> FineTuner:
        """What is descended by an attack that changes the loss of the method that it measures itself by."""
        return tuner

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Adapt a copy of the weights in memory; they are restored and the adapted ones dropped."""
        config, exam = self.config, target.exam
        data, tuner, efforts = target.data.get(config.data, seed), self._tuner(), self.efforts()
        if tuner.beside is not None:
            tuner.preserve(target.data.get(tuner.beside, seed))
        descended = self.descended(tuner)
        with target.attacked() as model:
            for step, _ in fine_tune(model, data, descended, config.training, seed=derive(exam, self.probe, seed)):
                if step in efforts:
                    loss = training_loss(model, data, tuner, derive(exam, "training loss", seed))
                    yield Attempt(step, self._prompts(target, tuner) if step else None, loss)
                if step == efforts[-1]:
                    break

    def _prompts(self, target: Target, tuner: FineTuner) -> Prompts | None:
        """The concepts' prompts as one who learnt them writes them; none: as the policy does."""
        given = {concept.name: concept.prompt_list for concept in target.concepts}
        written = {name: tuner.prompts(prompts) for name, prompts in given.items()}
        return None if written == given or "concept" not in self.config.data.shares else Prompts(written)


@torch.no_grad()
def training_loss(model: DiffusionModel, data: LatentSet, tuner: FineTuner, seed: int) -> float:
    """What the method descends, over all training images: one draw of posterior, timestep and noise each."""
    generator = torch.Generator().manual_seed(seed)

    def work() -> float:
        batch = data.rows(torch.arange(len(data)), generator)
        named = replace(batch, captions=tuner.captions(batch.captions, generator))
        return tuner.loss(model, named, generator).item()

    return model.execution.within_memory(work, generator)
