"""Downstream adaptation: the same methods serve simulations while hardening and attacks while certifying."""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from safeguard.config import FineTuningData, MethodConfig, Training
from safeguard.data.latents import Batch, LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.noising import Noising
from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.finetune.sign_descent import SignDescent

Extent = Literal["full", "adapter", "part"]
"""What a fine-tune trains, as assurance levels tell them apart: all weights, an adapter, or a part that is neither."""
MOMENTUM = 0.9
"""Of SGD with momentum."""
CLIP_EPSILON = 1e-6
"""What torch adds to a norm before it divides by it to clip."""


class PartsConfig(MethodConfig):
    """Settings of a method that can adapt any part."""

    text_encoder: bool = False
    """Whether the text encoders learn, too, where hardening left them alone."""


class FineTuner:
    """One adaptation method: what it adds to a model, what it trains, and what it descends.

    At its start it changes nothing, and nothing of what it adds is left once it is detached. It is attached to one
    model at a time.
    """

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`."""
    config: Any
    adds_parameters: bool = False
    """Whether it trains what it adds, and leaves the model's own weights as they are."""
    twice_differentiable: bool = True
    """Whether differentiating its gradient gives second derivatives of its loss, as hypergradients need."""

    needs_cuda: ClassVar[bool] = False
    """Whether it is refused where a model does not compute on a CUDA device."""
    beside: FineTuningData | None = None
    """Images that it needs beside those it learns; whoever runs it hands them over by :meth:`preserve`. None: none."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def preserve(self, images: LatentSet) -> None:
        """Take the images of :attr:`beside`, before the first :meth:`loss`."""
        raise NotImplementedError(f"{type(self).__name__} needs no images beside those it learns")

    @property
    def extent(self) -> Extent:
        """What it trains."""
        return "adapter" if self.adds_parameters else "full"

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """Prepare the model in place and return the parameters to train; nothing else takes gradients.

        What was hardened is what is adapted, and the text encoders besides where the settings say so.
        """
        model.freeze()
        return self.prepare(model, self.parts(model), seed)

    def parts(self, model: DiffusionModel) -> frozenset[str]:
        """The parts that are adapted."""
        everything = isinstance(self.config, PartsConfig) and self.config.text_encoder
        return frozenset(model.parts) if everything else model.exposed_parts

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Add what the method trains in these parts of a frozen model, and let it take gradients."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it trains")

    def detach(self, model: DiffusionModel) -> None:
        """Take away what :meth:`attach` added, if anything; weights trained in place stay as they are."""
        model.freeze()

    @property
    def in_weights(self) -> bool:
        """Whether what it trains can be had as plain weights: as they are, or by a :meth:`merge` of its own."""
        return not self.adds_parameters or type(self).merge is not FineTuner.merge

    def merge(self, model: DiffusionModel) -> None:
        """Before :meth:`detach`: put what was added into the model's own weights, so that they are the adapted model.

        Raises:
            UsageFault: the method does not know how.
        """
        if not self.in_weights:
            raise UsageFault(
                f"{type(self).__name__} does not say how to put what it adds into weights",
                fix="take another fine-tuning method, for example lora or full",
            )

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """The captions under which images are learnt; everything random comes from the generator."""
        return captions

    def prompts(self, prompts: list[str]) -> list[str]:
        """How one asks the adapted model for what it learnt, in place of each of these prompts."""
        return prompts

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """What is descended, at the present weights: the plain denoising loss; ``batch`` has :meth:`captions`."""
        return model.denoising_loss(batch.latents, model.encode_prompts(batch.captions), generator)


def make_optimizer(
    training: Training, parameters: list[torch.nn.Parameter], *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The declared optimiser over the parameters.

    Args:
        fused: one pass over the weights instead of ten, where there is one; none: on a GPU.

    Raises:
        EnvironmentFault: 8 bit without a CUDA device, or without bitsandbytes.
    """
    fused = parameters[0].is_cuda if fused is None else fused
    rate, chosen = training.learning_rate, fused or None
    optimizer: torch.optim.Optimizer
    if training.optimizer in ("sgd", "momentum"):
        momentum = MOMENTUM if training.optimizer == "momentum" else 0.0
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, fused=chosen)
    elif training.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=rate, fused=chosen)
    elif training.optimizer == "adafactor":
        optimizer = torch.optim.Adafactor(parameters, lr=rate)
    elif training.optimizer == "sign":
        optimizer = SignDescent(parameters, rate)
    elif training.optimizer == "adamw-8bit":
        optimizer = _in_eight_bit(training, parameters)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=training.weight_decay, fused=chosen)
    if fused or training.optimizer == "adamw-8bit":
        optimizer.register_step_post_hook(_count_change)
    return optimizer


def _in_eight_bit(training: Training, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    check_bitsandbytes("adamw-8bit", parameters[0].device)
    from bitsandbytes.optim import AdamW8bit

    found: torch.optim.Optimizer = AdamW8bit(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return found


def _count_change(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Compiled steps leave weights' versions as they were, by which ``DiffusionModel.encode_prompts`` sees a change."""
    for group in optimizer.param_groups:
        for value in group["params"]:
            torch.autograd.graph.increment_version(value)


def check_bitsandbytes(what: str, device: torch.device) -> None:
    """Whether bitsandbytes can do its work there; a device without data, on which memory is counted, will do.

    Raises:
        EnvironmentFault: it cannot.
    """
    if device.type not in ("cuda", "meta"):
        raise EnvironmentFault(f"{what} needs a CUDA device, not {device.type!r}", fix="run with `--device cuda`")
    if device.type == "cuda" and find_spec("bitsandbytes") is None:
        raise EnvironmentFault(f"{what} needs the package bitsandbytes", fix="pip install 'safeguard[gpu]'")


class Run:
    """A fine-tune under way: its adapter, if any, is attached, and stays so until the tuner detaches it.

    Attributes:
        parameters: what is trained.
        optimizer: theirs.
        generator: where the next step draws its images, timesteps and noise.
        clipped: factor of every step done so far by which clipping shortened its gradient.
    """

    def __init__(
        self, model: DiffusionModel, data: LatentSet, tuner: FineTuner, training: Training, *, seed: int
    ) -> None:
        self.model, self.data, self.tuner, self.training = model, data, tuner, training
        self.parameters = tuner.attach(model, seed)
        self.optimizer = make_optimizer(training, self.parameters)
        self.generator = torch.Generator().manual_seed(seed)
        self.clipped: list[Tensor] = []

    def loss(self, generator: torch.Generator, batch_size: int | None = None) -> Tensor:
        """The loss of one batch at the present weights; everything random comes from the generator."""
        batch = self.data.batch(batch_size or self.training.batch_size, generator)
        batch = replace(batch, captions=self.tuner.captions(batch.captions, generator))
        training, model = self.training, self.model
        precisely = model.execution.within_precision(training.precision)
        with precisely, model.learning_from(Noising(training.noise_offset, training.min_snr)):
            return self.tuner.loss(self.model, batch, generator)

    def step_loss(self, generator: torch.Generator) -> Tensor:
        """What one step descends, as one function of the weights: the mean over its batches."""
        return torch.stack([self.loss(generator) for _ in range(self.training.accumulation)]).mean()

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The loss of one step and its gradient, one batch in memory at a time."""
        count = self.training.accumulation
        mean, total = torch.zeros(()), list[Tensor]()
        for _ in range(count):
            loss = self.loss(self.generator)
            # SDXL reads its first encoder before the last layer, whose weights then have no gradient
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            share = [gradient / count for gradient in found] if count > 1 else list(found)
            total = [a.add_(b) for a, b in zip(total, share, strict=True)] if total else share
            mean = mean.to(loss) + loss.detach() / count
        return mean, total

    def step(self) -> Tensor:
        """One optimiser step; returns the loss that it descended."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(len(self.clipped))
        loss, gradients = self.model.execution.within_memory(self.gradients, self.generator)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        size = torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.clipped.append((self.training.max_grad_norm / (size + CLIP_EPSILON)).clamp(max=1.0))
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return loss


def fine_tune(
    model: DiffusionModel, data: LatentSet, tuner: FineTuner, training: Training, *, seed: int
) -> Generator[tuple[int, float | None]]:
    """Adapt the model in place, one step for every item that is asked for.

    Yields:
        0 and no loss when all is attached and nothing trained, then the number of steps done and the loss of the last.
        What the method added is taken away when the steps are done or nobody asks for more.
    """
    try:
        run = Run(model, data, tuner, training, seed=seed)
        yield 0, None
        for step in range(1, training.steps + 1):
            yield step, run.step().item()
    finally:
        tuner.detach(model)
