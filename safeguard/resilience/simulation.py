"""Simulated downstream fine-tunes inside the outer loop: which data, which method, how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from safeguard.config import FineTuningData, MethodConfig, Optimizer, Source, Training
from safeguard.data.fine_tuning import SimulatedDataSets, check_drawn, joined, missing
from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, Run
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import kept_subjects

T = TypeVar("T")
Prompts = Annotated[list[PositiveInt | None], Field(min_length=1)]
"""Numbers of prompts, one of which is drawn; none: all there are."""


class WeightedData(FineTuningData):
    """One of several data sets to draw from."""

    weight: PositiveFloat = 1.0
    """How often it is drawn, beside the others."""


class SimulatedTraining(Training):
    """A simulated fine-tune: shorter than those it stands for."""

    steps: PositiveInt = 16
    """Optimiser steps."""
    batch_size: PositiveInt = 4
    """Images at a time."""


class Simulations(MethodConfig):
    """The distribution simulated fine-tunes are drawn from; every list is drawn from uniformly, data by weight."""

    data: Annotated[list[WeightedData], Field(min_length=1)] = [WeightedData(shares={"concept": 1.0})]
    """What they see: images of ``concept`` (harmful), ``related``, ``retain`` (benign), or of several. Data that the
    policy has no subjects for are left out."""
    prompts: Prompts = [None]
    """How many different prompts, for data that do not say: 1 is the single-prompt attack; none: all."""
    methods: Annotated[list[FineTuningMethod], Field(min_length=1)] = [FineTuningMethod(name="full")]
    """Fine-tuning methods with their settings."""
    training: SimulatedTraining = SimulatedTraining()
    """How they run, but for what the next three lists vary."""
    learning_rates: list[PositiveFloat] = []
    """Learning rates; empty: that of ``training``."""
    steps: list[PositiveInt] = []
    """Lengths; empty: that of ``training``."""
    optimizers: list[Optimizer] = []
    """Optimisers; empty: that of ``training``."""
    losses: Annotated[list[Literal["plain", "prior-preserving"]], Field(min_length=1)] = ["plain"]
    """The denoising loss, or that with related and retained images beside it (DreamBooth's prior preservation)."""
    prior_weight: PositiveFloat = 1.0
    """Weight of the images beside."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Simulations:
        if any(self.training.warm_up >= steps for steps in self.steps):
            raise ValueError(f"a warm-up of {self.training.warm_up} steps leaves nothing of the shortest; shorten it")
        return self


@dataclass(frozen=True)
class Simulation:
    """One draw: everything that determines a simulated fine-tune.

    Attributes:
        description: what ``data`` are.
        seed: of the adapter and of all batches.
    """

    data: LatentSet
    description: FineTuningData
    tuner: FineTuner
    training: Training
    seed: int

    def start(self, context: HardeningContext) -> Run:
        """Begin it on the context's model, in place; an adapter stays attached until ``tuner.detach``."""
        return Run(context.model, self.data, self.tuner, self.training, seed=self.seed)


def checkpoints(steps: int, evaluations: int) -> set[int]:
    """After which of a fine-tune's steps to look at it: equally spaced ones, the last among them; at most all."""
    count = min(evaluations, steps)
    return {round(steps * (k + 1) / count) for k in range(count)}


def pick(options: Sequence[T], generator: torch.Generator) -> T:
    """One of the options."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def few_prompts(data: LatentSet, count: int | None, generator: torch.Generator) -> LatentSet:
    """The images of that many of its prompts, drawn at random; none: all."""
    if count is None:
        return data
    captions = list(dict.fromkeys(data.captions))
    return data.only([captions[place] for place in torch.randperm(len(captions), generator=generator)[:count].tolist()])


class Images:
    """The images that simulated fine-tunes see.

    Args:
        context: of the hardening; none of its images are drawn yet.
    """

    def __init__(self, context: HardeningContext) -> None:
        self._context = context
        self._sets = SimulatedDataSets(context.teacher, context.policy)

    def check(self, description: FineTuningData) -> None:
        """Whether the policy has such subjects; no image is drawn to find out.

        Raises:
            UsageFault: it lacks some.
            PolicyFault: the images are in a folder.
        """
        check_drawn(description)
        if lacking := missing(self._context.policy, description):
            raise UsageFault(
                f"no images to simulate fine-tunes on: the policy has no subjects of {lacking[0]!r}",
                fix="declare some, or simulate fine-tunes on 'concept'",
            )

    def get(self, description: FineTuningData, seed: int, generator: torch.Generator) -> LatentSet:
        """As many as the description says, for prompts that the seed picks, or the context's own, by the generator.

        Of the context's own there are as many as the shares allow.
        """
        if description.images is not None:
            return self._sets.get(description, seed)
        shares = description.shares
        pools = {source: few_prompts(self._pool(source), description.prompts, generator) for source in shares}
        whole = min(len(pool) / shares[source] for source, pool in pools.items())
        return joined([pool.first(max(1, round(whole * shares[source]))) for source, pool in pools.items()])

    def hand_over(self, tuner: FineTuner, seed: int, generator: torch.Generator) -> None:
        """The images that a method needs beside those it learns, if it does."""
        if tuner.beside is not None:
            tuner.preserve(self.get(tuner.beside, seed, generator))

    def _pool(self, source: Source) -> LatentSet:
        if source == "concept":
            return self._context.forget
        found = self._context.related if source == "related" else self._context.retain
        assert found is not None, f"the policy has subjects of {source!r}"
        return found


class Simulator:
    """Draws simulated fine-tunes.

    Raises:
        UsageFault: the policy has none of the data, or nothing to preserve; no image is drawn to find out.
    """

    def __init__(self, config: Simulations, context: HardeningContext) -> None:
        self._config, self._context, self._images = config, context, Images(context)
        self._data = [data for data in config.data if not missing(context.policy, data)]
        if not self._data:
            self._images.check(config.data[0])
        for data in self._data:
            self._images.check(data)
        for method in config.methods:
            if (beside := finetuners.make(method).beside) is not None:
                self._images.check(beside)
        if "prior-preserving" in config.losses and not kept_subjects(context):
            raise UsageFault(
                "a prior-preserving loss needs benign images",
                fix="declare related subjects of a concept, or retained subjects",
            )

    def draw(self, seed: int) -> Simulation:
        """A simulation that depends on the seed alone."""
        config, generator = self._config, torch.Generator().manual_seed(seed)
        weights = torch.tensor([data.weight for data in self._data])
        description: FineTuningData = self._data[int(torch.multinomial(weights, 1, generator=generator))]
        method = pick(config.methods, generator)
        varied = {
            "steps": pick(config.steps or [config.training.steps], generator),
            "learning_rate": pick(config.learning_rates or [config.training.learning_rate], generator),
            "optimizer": pick(config.optimizers or [config.training.optimizer], generator),
        }
        tuner = finetuners.make(method)
        if pick(config.losses, generator) == "prior-preserving" and tuner.beside is None:  # one that preserves none
            assert self._context.preserved is not None
            tuner = PriorPreservation(tuner, self._context.preserved, config.prior_weight)
        prompts = pick(config.prompts, generator)
        if description.prompts is None:
            description = description.model_copy(update={"prompts": prompts})
        data = self._images.get(description, seed, generator)
        self._images.hand_over(tuner, seed, generator)
        return Simulation(data, description, tuner, config.training.model_copy(update=varied), seed)
