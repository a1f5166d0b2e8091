"""The base model takes the first steps, the certified one the rest; needs both models (completion, arXiv 2505.17013).

It asks whether the layout, which a few steps decide, is enough for the erased model to finish the concept. It is a
diagnostic: with all steps this *is* the base model, so it stands for no kind of attack, and no requirement judges it.
Nothing but the denoiser is the base's in those steps: both read the text states of the certified model, and an erasure
that lies in a text encoder is the business of ``components``. Stored erasers do nothing in them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.base_model import base_weights, faded_erasers, put
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.diffusion.samplers import Relay
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
    reported_only: ClassVar = True

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
        yield Attempt(0)
        base = base_weights(target, ["unet"]) | faded_erasers(target.model)
        with target.attacked():
            for first in self.config.first:
                yield Attempt(first, sampler=Relay(first, partial(in_place, base), self.config.steps))


@contextmanager
def in_place(base: dict[str, Tensor], model: DiffusionModel) -> Iterator[None]:
    """Inside, the denoiser has these weights, and then its own again."""
    own = model.named_parameters()
    with Weights({name: own[name] for name in base}):
        put(model, base)
        yield
