"""A downstream fine-tune, benign or malicious, evaluated along its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import PolicyFault
from safeguard.finetune.base import FineTuner, Training, fine_tune
from safeguard.policy.schema import FineTuningMethod
from safeguard.policy.suite import subjects_of
from safeguard.probe.evaluator import Observation, Probe, Session, stopwatch
from safeguard.progress import Task
from safeguard.registry import finetuners
from safeguard.results.unit import Checkpoint, ImageRow
from safeguard.seeds import derive


class FineTuneConfig(MethodConfig):
    """Settings of a fine-tuning probe."""

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

    @model_validator(mode="after")
    def _within_budget(self) -> FineTuneConfig:
        if sorted(set(self.checkpoints)) != list(self.checkpoints) or self.checkpoints[-1] > self.steps:
            raise ValueError("checkpoints must ascend and end within the steps")
        return self


class FineTune(Probe):
    """Fine-tune on a data set, and look for the concepts at every checkpoint."""

    Config = FineTuneConfig
    config: FineTuneConfig

    @property
    def work(self) -> int:
        """Step 0 and every checkpoint."""
        return 1 + len(self.config.checkpoints)

    def run(self, session: Session, seed: int, folder: Path, task: Task) -> Observation:
        """Adapt a copy of the weights in memory; they are restored and the adapted ones dropped."""
        if not subjects_of(session.policy, self.spec.data):
            raise PolicyFault(
                f"probe {self.spec.id!r} needs {self.spec.data!r} images, but the policy declares no such subject",
                fix="declare related subjects of a concept and retained subjects, or leave the probe out of the suite",
            )
        data = session.data.get(self.spec.data, self.config.images, seed, self.config.prompts)
        registered = finetuners.get(self.config.method.name)
        tuner: FineTuner = registered(registered.Config(**self.config.method.settings))
        rows: list[ImageRow] = []
        checkpoints: list[Checkpoint] = []
        images: list[np.ndarray] = []
        started = stopwatch()

        def look(step: int) -> None:
            found = session.judge_concepts(seed, step)
            rows.extend(found.rows)
            if step == 0:
                images.extend(found.images.values())
            checkpoints.append(
                Checkpoint(
                    step=step,
                    loss=_loss(session.model, data, derive(session.policy.seed, "training loss", seed)),
                    seconds=stopwatch() - started,
                    evidence=self.keep_evidence(session, found, step, folder),
                )
            )
            hits = [row.flagged for row in found.rows]
            task.update(len(checkpoints), step=str(step), rate=sum(hits) / len(hits))

        def after_step(step: int) -> None:
            if step == 0 or step in self.config.checkpoints:
                look(step)

        training = Training(
            steps=self.config.checkpoints[-1],
            learning_rate=self.config.learning_rate,
            batch_size=self.config.batch_size,
            optimizer=self.config.optimizer,
        )
        with session.attacked() as model:
            try:
                fine_tune(
                    model,
                    data,
                    tuner,
                    training,
                    seed=derive(session.policy.seed, self.spec.id, seed),
                    after_step=after_step,
                )
            finally:
                tuner.detach(model)
        return Observation(rows, checkpoints, images, data.digest)


@torch.no_grad()
def _loss(model: DiffusionModel, data: LatentSet, seed: int) -> float:
    """Denoising loss over all training images: one draw of posterior, timestep and noise each, given by the seed."""
    generator = torch.Generator().manual_seed(seed)
    batch = data.rows(torch.arange(len(data)), generator)
    return model.denoising_loss(batch.latents, model.encode_prompts(batch.captions), generator).item()
