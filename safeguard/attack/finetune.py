"""A downstream fine-tune, benign or malicious, stopped at along its steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.config import MethodConfig, Source
from safeguard.data.fine_tuning import DataSets
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Training, fine_tune
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class FineTuneConfig(MethodConfig):
    """Settings of a fine-tune."""

    data: Source
    """Whose images are fine-tuned on."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """Fine-tuning method with its settings."""
    steps: PositiveInt = 200
    """Optimiser steps (the budget)."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 20, 50, 100, 200]
    """Steps after which the concepts are looked for; step 0 always is (the placebo)."""
    learning_rate: PositiveFloat = 1e-5
    """Constant learning rate."""
    batch_size: PositiveInt = 1
    """Images per step."""
    images: PositiveInt = 32
    """Images in the training set."""
    prompts: PositiveInt | None = None
    """Different prompts in it, drawn by the seed: 1 is the single-prompt attack; all of them when left out."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Optimiser."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        return cls(data="concept", steps=2, checkpoints=[1, 2], learning_rate=1e-3, batch_size=2, images=3)

    @model_validator(mode="after")
    def _within_budget(self) -> FineTuneConfig:
        if sorted(set(self.checkpoints)) != list(self.checkpoints) or self.checkpoints[-1] > self.steps:
            raise ValueError("checkpoints must ascend and end within the steps")
        return self


class FineTune(Attack[FineTuneConfig]):
    """Fine-tune on a data set, and stop at every checkpoint."""

    Config: ClassVar = FineTuneConfig
    axis: ClassVar = "fine-tuning steps"

    def efforts(self) -> list[int]:
        """Step 0 and every checkpoint."""
        return [0, *self.config.checkpoints]

    def sources(self) -> list[Source]:
        """Those of its images."""
        return [self.config.data]

    def cost(self) -> Cost:
        """Every step sees one batch; at every checkpoint the loss of all images is measured."""
        steps = self.config.checkpoints[-1]
        calls = steps * self.config.batch_size + len(self.efforts()) * self.config.images
        return Cost(training_images=self.config.images, steps=steps, network_calls=calls)

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training set."""
        self._images(data, seed)

    def _images(self, data: DataSets, seed: int) -> LatentSet:
        return data.get(self.config.data, self.config.images, seed, self.config.prompts)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Adapt a copy of the weights in memory; they are restored and the adapted ones dropped."""
        config, base_seed = self.config, target.policy.seed
        data = self._images(target.data, seed)
        training = Training(
            steps=config.checkpoints[-1],
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
        )
        tuner, efforts = finetuners.make(config.method), self.efforts()
        with target.attacked() as model:
            for step in fine_tune(model, data, tuner, training, seed=derive(base_seed, self.probe, seed)):
                if step in efforts:
                    yield Attempt(step, loss=training_loss(model, data, derive(base_seed, "training loss", seed)))


@torch.no_grad()
def training_loss(model: DiffusionModel, data: LatentSet, seed: int) -> float:
    """Denoising loss over all training images: one draw of posterior, timestep and noise each, given by the seed."""
    generator = torch.Generator().manual_seed(seed)
    batch = data.rows(torch.arange(len(data)), generator)
    return model.denoising_loss(batch.latents, model.encode_prompts(batch.captions), generator).item()
