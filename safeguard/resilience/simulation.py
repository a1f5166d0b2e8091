"""Simulated downstream fine-tunes inside the outer loop: which data, which method, how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, Run, Training
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import kept_subjects

_SETS = "(concept|related|retain)"
DataName = Annotated[str, Field(pattern=rf"^{_SETS}(\+{_SETS})*$")]
"""One of the hardening context's sets of images, or several joined by ``+``."""
Prompts = Annotated[list[PositiveInt | None], Field(min_length=1)]
"""Numbers of prompts, one of which is drawn; none: all there are."""


class Simulations(MethodConfig):
    """The distribution simulated fine-tunes are drawn from; every list is drawn from uniformly."""

    data: Annotated[dict[DataName, Annotated[float, Field(ge=0)]], Field(min_length=1)] = {"concept": 1.0}
    """Weights of the data sets: ``concept`` (harmful), ``related``, ``retain`` (benign), and mixtures such as
    ``concept+retain``, whose images are drawn together. Sets that the policy does not have are left out."""
    prompts: Prompts = [None]
    """How many different prompts the images of a simulation have: 1 is the single-prompt attack; none: all of the
    set's."""
    methods: Annotated[list[FineTuningMethod], Field(min_length=1)] = [FineTuningMethod(name="full")]
    """Fine-tuning methods with their settings."""
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = [1e-5]
    """Learning rates."""
    steps: Annotated[list[PositiveInt], Field(min_length=1)] = [16]
    """Lengths."""
    optimizers: Annotated[list[Literal["sgd", "momentum", "adam", "adamw"]], Field(min_length=1)] = ["adamw"]
    """Optimisers."""
    losses: Annotated[list[Literal["plain", "prior-preserving"]], Field(min_length=1)] = ["plain"]
    """The denoising loss, or that with related and retained images beside it (DreamBooth's prior preservation)."""
    prior_weight: PositiveFloat = 1.0
    """Weight of the images beside."""
    batch_size: PositiveInt = 4
    """Images per step."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""


@dataclass(frozen=True)
class Simulation:
    """One draw: everything that determines a simulated fine-tune.

    Attributes:
        prior: images of the prior-preserving loss; None: the plain one.
        seed: of the adapter and of all batches.
    """

    data: LatentSet
    data_name: str
    tuner: FineTuner
    training: Training
    prior: LatentSet | None
    prior_weight: float
    seed: int

    def start(self, context: HardeningContext) -> Run:
        """Begin it on the context's model, in place; an adapter stays attached until ``tuner.detach``."""
        return Run(
            context.model,
            self.data,
            self.tuner,
            self.training,
            seed=self.seed,
            prior=self.prior,
            prior_weight=self.prior_weight,
        )


def checkpoints(steps: int, points: int) -> set[int]:
    """After which of a fine-tune's steps to look at it: equally spaced ones, the last among them; at most all."""
    count = min(points, steps)
    return {round(steps * (k + 1) / count) for k in range(count)}


def images(context: HardeningContext, name: str) -> LatentSet | None:
    """The set of that name, or what there is of a mixture; None without any."""
    drawn = {"concept": "forget", "related": "related", "retain": "retain"}
    sets: list[LatentSet | None] = [getattr(context, drawn[part]) for part in dict.fromkeys(name.split("+"))]
    found = [data for data in sets if data is not None]
    return LatentSet.join(found) if len(found) > 1 else next(iter(found), None)


def few_prompts(data: LatentSet, count: int | None, generator: torch.Generator) -> LatentSet:
    """The images of that many of its prompts, drawn at random; none: all."""
    if count is None:
        return data
    captions = list(dict.fromkeys(data.captions))
    return data.only([captions[place] for place in torch.randperm(len(captions), generator=generator)[:count].tolist()])


def check(config: Simulations, context: HardeningContext) -> None:
    """Whether the policy has what simulations may be drawn from; no image is drawn to find out.

    Raises:
        UsageFault: it has none of the data, or nothing to preserve.
    """
    related = any(concept.related for concept in context.concepts)
    there = {"concept"} | ({"related"} if related else set()) | ({"retain"} if context.policy.retain else set())
    if not any(weight and there & set(name.split("+")) for name, weight in config.data.items()):
        asked = ", ".join(name for name, weight in config.data.items() if weight) or "nothing"
        raise UsageFault(
            f"no images to simulate fine-tunes on: distribution.data asks for {asked}",
            fix="give 'concept' a weight there, or declare related or retained subjects",
        )
    if "prior-preserving" in config.losses and not kept_subjects(context):
        raise UsageFault(
            "a prior-preserving loss needs benign images",
            fix="declare related subjects of a concept, or retained subjects",
        )


def draw(config: Simulations, context: HardeningContext, seed: int) -> Simulation:
    """A simulation that depends on the seed alone; what may be drawn was checked (:func:`check`)."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: list[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    sets = {
        name: data for name, weight in config.data.items() if weight and (data := images(context, name)) is not None
    }
    names = list(sets)
    weights = torch.tensor([config.data[name] for name in names])
    name = names[int(torch.multinomial(weights, 1, generator=generator))]
    method: FineTuningMethod = pick(config.methods)
    training = Training(
        steps=pick(config.steps),
        learning_rate=pick(config.learning_rates),
        batch_size=config.batch_size,
        optimizer=pick(config.optimizers),
        max_grad_norm=config.max_grad_norm,
    )
    prior = context.preserved if pick(config.losses) == "prior-preserving" else None
    tuner = finetuners.make(method)
    data = few_prompts(sets[name], pick(config.prompts), generator)
    return Simulation(data, name, tuner, training, prior, config.prior_weight, seed)
