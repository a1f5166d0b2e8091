"""Simulated downstream fine-tunes inside the outer loop: which data, which method, how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.finetune.base import FineTuner, Training, fine_tune
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.unlearn.base import Workbench


class Simulations(MethodConfig):
    """The distribution simulated fine-tunes are drawn from; every list is drawn from uniformly."""

    data: dict[Literal["concept", "related", "retain"], Annotated[float, Field(ge=0)]] = {
        "concept": 0.5,
        "related": 0.25,
        "retain": 0.25,
    }
    """Weights of the data sets."""
    methods: Annotated[list[FineTuningMethod], Field(min_length=1)] = [FineTuningMethod(name="full")]
    """Fine-tuning methods with their settings."""
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = [1e-5]
    """Learning rates."""
    steps: Annotated[list[PositiveInt], Field(min_length=1)] = [5, 10, 20, 30]
    """Lengths."""
    optimizers: Annotated[list[Literal["sgd", "adam", "adamw"]], Field(min_length=1)] = ["sgd", "adam"]
    """Optimisers."""
    batch_size: PositiveInt = 1
    """Images per step."""


@dataclass(frozen=True)
class Simulation:
    """One draw: everything that determines a simulated fine-tune."""

    data: LatentSet
    data_name: str
    tuner: FineTuner
    training: Training
    seed: int


def draw(config: Simulations, bench: Workbench, seed: int) -> Simulation:
    """A simulation that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: list[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    sets = {"concept": bench.forget, "related": bench.related, "retain": bench.retain}
    names = [name for name, weight in config.data.items() if weight > 0 and sets[name] is not None]
    weights = torch.tensor([config.data[name] for name in names])
    name = names[int(torch.multinomial(weights, 1, generator=generator))]
    method: FineTuningMethod = pick(config.methods)
    registered = finetuners.get(method.name)
    data = sets[name]
    assert data is not None
    return Simulation(
        data=data,
        data_name=name,
        tuner=registered(registered.Config(**method.settings)),
        training=Training(
            steps=pick(config.steps),
            learning_rate=pick(config.learning_rates),
            batch_size=config.batch_size,
            optimizer=pick(config.optimizers),
        ),
        seed=seed,
    )


def run(simulation: Simulation, bench: Workbench, after_step: Callable[[int], None]) -> None:
    """Fine-tune the bench's model in place; an adapter stays attached until ``simulation.tuner.detach``."""
    fine_tune(
        bench.model, simulation.data, simulation.tuner, simulation.training, seed=simulation.seed, after_step=after_step
    )
