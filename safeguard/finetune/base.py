"""Downstream adaptation: the same methods serve simulations while hardening and probes while certifying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.model.diffusion import DiffusionModel
from safeguard.model.memory import within_memory


class Training(MethodConfig):
    """How a fine-tune runs, whatever its method."""

    steps: PositiveInt = 200
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Constant learning rate."""
    batch_size: PositiveInt = 1
    """Images per step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Optimiser, with its library defaults."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""


class FineTuner(Protocol):
    """One adaptation method: what it adds to the model and which parameters it trains.

    It trains the denoiser, and with it every other part of ``model.surface``.
    """

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`."""

    def __init__(self, config: Any) -> None: ...

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """Prepare the model in place and return the parameters to train; nothing else takes gradients."""
        ...

    def detach(self, model: DiffusionModel) -> None:
        """Take away what :meth:`attach` added; weights trained in place stay as they are."""
        ...


def make_optimizer(training: Training, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The declared optimiser over the parameters."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate)
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)


def fine_tune(
    model: DiffusionModel,
    data: LatentSet,
    tuner: FineTuner,
    training: Training,
    *,
    seed: int,
    begin: Callable[[list[torch.nn.Parameter], torch.optim.Optimizer], None] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Adapt the model in place with the plain denoising loss; the adapter, if any, stays attached.

    Args:
        begin: hears the parameters and their optimiser when all is attached, to put there what goes on from earlier.
        after_step: hears the number of steps done: 0 when all is attached and nothing trained, then every step.
    """
    parameters = tuner.attach(model, seed)
    optimizer = make_optimizer(training, parameters)
    generator = torch.Generator().manual_seed(seed)
    if begin is not None:
        begin(parameters, optimizer)

    def slopes() -> tuple[torch.Tensor, ...]:
        batch = data.batch(training.batch_size, generator)
        loss = model.denoising_loss(batch.latents, model.encode_prompts(batch.captions), generator)
        # SDXL reads its first encoder before the last layer, whose weights then have no gradient
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    after_step(0)
    for step in range(training.steps):
        gradients = within_memory(model, slopes, generator)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        after_step(step + 1)
    for parameter in parameters:
        parameter.grad = None
