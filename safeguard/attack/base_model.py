"""The base model's weights beside the certified model's, by their names, and the certified model as the base.

One model is in memory: what is of the base is read component by component (:class:`safeguard.attack.target.Base`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safeguard.attack.target import Base, Target
from safeguard.config import Training
from safeguard.data.latents import LatentSet
from safeguard.diffusion import erasers
from safeguard.diffusion.model import PARTS, DiffusionModel
from safeguard.diffusion.residence import off_device
from safeguard.errors import ModelFault, UsageFault
from safeguard.finetune.base import FineTuner, fine_tune

OTHERS = ("tokenizer", "tokenizer_2", "vae", "scheduler")
"""Components beside the parts, as diffusers names them."""


class FineTuned(NamedTuple):
    """A fine-tune of the base, in main memory: values by names such as ``unet.conv_in.weight``."""

    base: dict[str, Tensor]
    """theta_0."""
    difference: dict[str, Tensor]
    """theta_B - theta_0."""


def base_of(target: Target) -> Base:
    """The base model.

    Raises:
        UsageFault: it is not at hand.
    """
    if target.base is None:
        raise UsageFault("the base model is not at hand", fix="run the attack through a certification or a probe")
    return target.base


def base_weights(target: Target, parts: Collection[str] = PARTS) -> dict[str, Tensor]:
    """theta_0: the base's weights of the parts, by the certified model's names.

    Stored erasers are no part of the base, and have none.

    Raises:
        UsageFault: the base is not at hand.
        ModelFault: a part of the base has other weights, or others' shapes.
    """
    base = base_of(target)
    return {
        f"{name}.{key}": value
        for name, part in target.model.parts.items()
        if name in parts
        for key, value in counterparts(name, part, base.component(name)).items()
    }


def counterparts(name: str, part: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The base's values of all of a part's parameters but those of erasers, by name.

    Args:
        name: of the part, for messages.
        part: the certified model's.
        other: the base's.

    Raises:
        ModelFault: a parameter has none, or one of another shape.
    """
    values, stored = dict(other.named_parameters()), erasers.parameter_names(part)
    found = {}
    for key, parameter in part.named_parameters():
        if key in stored:
            continue
        if key not in values or values[key].shape != parameter.shape:
            raise ModelFault(
                f"{name}.{key} has no counterpart in the base model, so it cannot be put back",
                fix="leave the part out of the probe, or certify a model of the base's architecture",
            )
        found[key] = values[key].detach()
    return found


def faded_erasers(model: DiffusionModel) -> dict[str, Tensor]:
    """Values at which stored erasers add nothing, E(h) = up(act(down(h))) = 0: a base that had them."""
    names, parameters = erasers.parameter_names(model.unet), model.named_parameters()
    ends = [f"unet.{name}" for name in sorted(names) if ".up." in name]
    return {name: torch.zeros_like(parameters[name]) for name in ends}


@torch.no_grad()
def put(model: DiffusionModel, values: dict[str, Tensor]) -> None:
    """Copy values into the parameters of these names, in place."""
    parameters = model.named_parameters()
    for name, value in values.items():
        parameters[name].copy_(value)


@torch.no_grad()
def add(model: DiffusionModel, values: dict[str, Tensor], factor: float) -> None:
    """theta + factor * value, in place."""
    parameters = model.named_parameters()
    for name, value in values.items():
        parameters[name].add_(value.to(parameters[name].device), alpha=factor)


@torch.no_grad()
def towards(model: DiffusionModel, values: dict[str, Tensor], share: float) -> None:
    """theta + share * (value - theta), in place; a share of 1 gives the values exactly."""
    parameters = model.named_parameters()
    for name, value in values.items():
        parameters[name].lerp_(value.to(parameters[name].device), share)


@contextmanager
def replaced(model: DiffusionModel, name: str, component: Any) -> Iterator[None]:
    """Inside, the model has this tokenizer, autoencoder or noise schedule."""
    before, schedule = getattr(model.pipeline, name), model.alphas_cumprod
    try:
        setattr(model.pipeline, name, component)
        model.alphas_cumprod = model.pipeline.scheduler.alphas_cumprod.to(model.device)
        model.forget_texts()
        yield
    finally:
        setattr(model.pipeline, name, before)
        model.alphas_cumprod = schedule
        model.forget_texts()


@contextmanager
def as_base(target: Target) -> Iterator[tuple[DiffusionModel, dict[str, Tensor]]]:
    """Inside, the target's model is the base: weights, tokenizers, autoencoder, noise schedule, and no erasers.

    Yields:
        The model, to change at will, and :func:`base_weights`.

    Raises:
        UsageFault: the base is not at hand.
        ModelFault: as :func:`base_weights`.
    """
    base, values = base_of(target), base_weights(target)
    with target.attacked() as model, ExitStack() as stack:
        stack.enter_context(erasers.aside(model.unet))
        for name in (name for name in OTHERS if name in base.differing):
            stack.enter_context(replaced(model, name, base.component(name)))
        put(model, values)
        yield model, values


def fine_tuned_base(target: Target, data: LatentSet, tuner: FineTuner, training: Training, seed: int) -> FineTuned:
    """Fine-tune the base in the target's place: nothing of it depends on the certified weights.

    What is trained is what a fine-tune of the certified model would train.

    Raises:
        UsageFault: the base is not at hand, or what the method adds cannot be put into weights.
        ModelFault: as :func:`base_weights`.
    """
    with as_base(target) as (model, base):
        for step, _ in fine_tune(model, data, tuner, training, seed=seed):
            if step == training.steps:
                tuner.merge(model)
        adapted = model.named_parameters()
        difference = {name: off_device(adapted[name]).sub_(value) for name, value in base.items()}
        return FineTuned(base, {name: value for name, value in difference.items() if value.any()})
