"""The base model takes the first steps, the certified one the rest; needs both models (completion, arXiv 2505.17013).

It asks whether the layout, which a few steps decide, is enough for the erased model to finish the concept. It is a
diagnostic: with all steps this *is* the base model, so it stands for no kind of attack, and no requirement should be
about it. Nothing but the denoiser is the base's in those steps: both read the text states of the certified model, and
an erasure that lies in a text encoder is the business of ``components``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.diffusion.erasers import erasers
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.diffusion.samplers import Relay
from safeguard.errors import ModelFault, UsageFault
from safeguard.results.plan import Cost, Needs


class CompletionConfig(MethodConfig):
    """How much the base model does."""

    first: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 3]
    """Steps that the base model takes, one checkpoint each."""
    steps: Annotated[int, Field(gt=0, le=1000)] = 50
    """Steps in all, of the deterministic DDIM."""

    @classmethod
    def tiny(cls) -> Self:
        """Three steps in all."""
        return cls(first=[1, 3], steps=3)

    @model_validator(mode="after")
    def _within_the_run(self) -> CompletionConfig:
        if sorted(set(self.first)) != self.first or self.first[-1] > self.steps:
            raise ValueError("first must ascend and end within the steps")
        return self


class Completion(Attack[CompletionConfig]):
    """Finish what the base model began."""

    Config: ClassVar = CompletionConfig
    axis: ClassVar = "base steps"

    def efforts(self) -> list[int]:
        """Steps of the base model; 0 is the model drawn as always."""
        return [0, *self.config.first]

    def cost(self) -> Cost:
        """Steps of its own."""
        return Cost(sampler_steps=dict.fromkeys(self.config.first, self.config.steps))

    def needs(self) -> Needs:
        """Both models, to be run in turns."""
        return Needs(weights=True, base_model=True, sampler=True)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """The released model; the base's denoiser lies in main memory, and is in place in its steps alone.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: its denoiser has another shape.
        """
        if target.base is None:
            raise UsageFault("the base model is not at hand", fix="run the attack through a certification or a probe")
        yield Attempt(0)
        with target.attacked():
            base = dict(target.base.component("unet").named_parameters())
            for first in self.config.first:
                yield Attempt(first, sampler=Relay(first, partial(in_place, base), self.config.steps))


@contextmanager
def in_place(base: Mapping[str, Tensor], model: DiffusionModel) -> Iterator[None]:
    """Inside, the denoiser has the base's weights, and stored erasers do nothing; then its own come back.

    Raises:
        ModelFault: a weight has no counterpart of its shape.
    """
    own = dict(model.unet.named_parameters())
    stored = {id(value) for each in erasers(model.unet).values() for value in each.parameters()}
    lacking = [name for name, value in own.items() if id(value) not in stored and not _fits(value, base.get(name))]
    if lacking:
        raise ModelFault(
            f"unet.{lacking[0]} has no counterpart in the base model, so the base cannot take the first steps",
            fix="leave the probe out, or certify a model of the base's architecture",
        )
    with Weights(own):
        with torch.no_grad():
            for name, value in own.items():
                value.zero_() if id(value) in stored else value.copy_(base[name])
        yield


def _fits(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and other.shape == value.shape
