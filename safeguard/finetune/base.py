"""Downstream adaptation: the same methods serve simulations while hardening and probes while certifying."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel

MOMENTUM = 0.9
"""Of SGD with momentum."""
CLIP_EPSILON = 1e-6
"""What torch adds to a norm before it divides by it to clip."""


class Training(MethodConfig):
    """How a fine-tune runs, whatever its method."""

    steps: PositiveInt = 200
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Constant learning rate."""
    batch_size: PositiveInt = 1
    """Images per step."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw"] = "adamw"
    """Optimiser, with its library defaults; ``momentum`` is SGD with 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""


class FineTuner(Protocol):
    """One adaptation method: what it adds to the model and which parameters it trains.

    It trains the denoiser, and with it every other part of ``model.exposed_parts``.
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


def make_optimizer(
    training: Training, parameters: list[torch.nn.Parameter], *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The declared optimiser over the parameters.

    Args:
        fused: one pass over the weights instead of ten; none: on a GPU.
    """
    fused = parameters[0].is_cuda if fused is None else fused
    rate, chosen = training.learning_rate, fused or None
    optimizer: torch.optim.Optimizer
    if training.optimizer in ("sgd", "momentum"):
        momentum = MOMENTUM if training.optimizer == "momentum" else 0.0
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, fused=chosen)
    elif training.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=rate, fused=chosen)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=training.weight_decay, fused=chosen)
    if fused:
        optimizer.register_step_post_hook(_count_change)
    return optimizer


def _count_change(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Fused steps leave weights' versions as they were, by which ``DiffusionModel.encode_prompts`` sees a change."""
    for group in optimizer.param_groups:
        for value in group["params"]:
            torch.autograd.graph.increment_version(value)


class Run:
    """A fine-tune under way: its adapter, if any, is attached, and stays so until the tuner detaches it.

    Args:
        prior: images of the class that the data are of, whose loss is added so that the class survives
            (DreamBooth's prior preservation, arXiv 2208.12242); None: the plain denoising loss.
        prior_weight: weight of that term.

    Attributes:
        parameters: what is trained.
        optimizer: theirs.
        generator: where the next step draws its images, timesteps and noise.
        clipped: factor of every step done so far by which clipping shortened its gradient.
    """

    def __init__(
        self,
        model: DiffusionModel,
        data: LatentSet,
        tuner: FineTuner,
        training: Training,
        *,
        seed: int,
        prior: LatentSet | None = None,
        prior_weight: float = 1.0,
    ) -> None:
        self.model, self.data, self.training = model, data, training
        self.prior, self.prior_weight = prior, prior_weight
        self.parameters = tuner.attach(model, seed)
        self.optimizer = make_optimizer(training, self.parameters)
        self.generator = torch.Generator().manual_seed(seed)
        self.clipped: list[Tensor] = []

    def loss(self, generator: torch.Generator, batch_size: int | None = None) -> Tensor:
        """The loss of one batch at the present weights; everything random comes from the generator."""
        total = self._denoising(self.data, generator, batch_size)
        if self.prior is not None:
            total = total + self.prior_weight * self._denoising(self.prior, generator, batch_size)
        return total

    def _denoising(self, data: LatentSet, generator: torch.Generator, batch_size: int | None) -> Tensor:
        batch = data.batch(batch_size or self.training.batch_size, generator)
        return self.model.denoising_loss(batch.latents, self.model.encode_prompts(batch.captions), generator)

    def _gradients(self) -> tuple[Tensor, ...]:
        # SDXL reads its first encoder before the last layer, whose weights then have no gradient
        loss = self.loss(self.generator)
        return torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)

    def step(self) -> None:
        """One optimiser step."""
        gradients = self.model.execution.within_memory(self._gradients, self.generator)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        size = torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.clipped.append((self.training.max_grad_norm / (size + CLIP_EPSILON)).clamp(max=1.0))
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None


def fine_tune(
    model: DiffusionModel, data: LatentSet, tuner: FineTuner, training: Training, *, seed: int
) -> Iterator[int]:
    """Adapt the model in place with the plain denoising loss.

    Yields the number of steps done: 0 when all is attached and nothing trained, then every step. An adapter stays
    attached until the iterator is exhausted or closed.
    """
    try:
        run = Run(model, data, tuner, training, seed=seed)
        yield 0
        for step in range(training.steps):
            run.step()
            yield step + 1
    finally:
        tuner.detach(model)
