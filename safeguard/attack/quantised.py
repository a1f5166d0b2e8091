r"""Weights in few bits, as they are run on small cards: does the concept come back when weights are rounded?

A weight w becomes s q, where q is one of few numbers and s belongs to a group of weights.

* ``int8``, ``int4``: symmetric, per output channel: q is an integer, |q| <= 2^(b-1) - 1, s = max|w| / (2^(b-1) - 1).
* ``nf4``: groups of 64 weights in the order they are stored; s = max|w|, and q is the nearest of sixteen quantiles of a
  normal distribution, of which one is 0 (QLoRA, arXiv 2305.14314, section 3 and appendix E).
* ``q4_0``: groups of 32, as GGUF files have them: s = m / -8 for the weight m of largest magnitude, q is an integer,
  -8 <= q <= 7, so that m is kept, and s is stored in half precision.

What has one dimension (biases, norms) stays, as it does in those who run models so. The arithmetic stays what it is.
``layers: linear`` leaves kernels of convolutions as they are, as libraries do that replace linear layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache, partial
from statistics import NormalDist
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from safeguard.attack.base import Attempt, Variants
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.results.plan import Needs

NumberType = Literal["int8", "int4", "nf4", "q4_0"]
TYPES: tuple[NumberType, ...] = ("int8", "int4", "nf4", "q4_0")
FOUR_BIT = frozenset({"int4", "nf4", "q4_0"})
Layers = Literal["all", "linear"]
GROUP = 64
"""Weights of ``nf4`` with one scale."""
BLOCK = 32
"""Weights of ``q4_0`` with one scale."""
_OUTERMOST = (1 - 1 / 32 + 1 - 1 / 30) / 2
"""Probability of the largest quantile: between those of sixteen and of fifteen equal shares."""


class QuantisedConfig(MethodConfig):
    """Into which types, and of which layers."""

    types: Annotated[list[NumberType], Field(min_length=1)] = list(TYPES)
    """One variant each."""
    layers: Layers = "all"
    """Matrices and kernels, or those of linear layers alone."""

    @field_validator("types")
    @classmethod
    def _once(cls, given: list[NumberType]) -> list[NumberType]:
        if len(set(given)) < len(given):
            raise ValueError("each type is one variant: name it once")
        return given


class Quantised(Variants[QuantisedConfig]):
    """Round the denoiser's matrices and kernels to 8 and 4 bit."""

    Config: ClassVar = QuantisedConfig

    def count(self) -> int:
        """One per variant."""
        return len(self.config.types)

    def needs(self) -> Needs:
        """The weights."""
        return Needs(weights=True)

    def covers(self) -> list[str]:
        """8 and 4 bit, if both are there and of all layers."""
        both = self.config.layers == "all" and "int8" in self.config.types and FOUR_BIT & set(self.config.types)
        return ["quantised"] if both else []

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each variant begins with the released model."""
        yield Attempt(0)
        for number, kind in enumerate(self.config.types, start=1):
            with target.attacked() as model:
                quantise(model.unet, kind, self.config.layers)
                of = "the denoiser" if self.config.layers == "all" else "the denoiser's linear layers"
                yield Attempt(number, label=f"weights of {of} in {kind}")


@torch.no_grad()
def quantise(module: torch.nn.Module, kind: NumberType, layers: Layers = "all") -> None:
    """Round everything of two dimensions and more in these layers, in place."""
    linear = {id(each.weight) for each in module.modules() if isinstance(each, torch.nn.Linear)}
    for parameter in module.parameters():
        if parameter.dim() > 1 and (layers == "all" or id(parameter) in linear):
            parameter.copy_(_ROUNDED[kind](parameter.detach().float()))


def integers(weight: Tensor, bits: int) -> Tensor:
    """Per output channel, the first dimension; the same shape."""
    largest = 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / largest
    scale = scale.where(scale > 0, torch.ones_like(scale))
    rounded: Tensor = (weight / scale).round() * scale
    return rounded


def normal_floats(weight: Tensor) -> Tensor:
    """In groups of :data:`GROUP`; the same shape."""
    groups = _groups(weight, GROUP)
    scale = groups.abs().amax(1, keepdim=True)
    scale = scale.where(scale > 0, torch.ones_like(scale))
    levels = torch.tensor(normal_levels(), device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    return _weights(levels[torch.bucketize(groups / scale, between)] * scale, weight)


def blocks(weight: Tensor) -> Tensor:
    """``q4_0``, in groups of :data:`BLOCK`; the same shape."""
    groups = _groups(weight, BLOCK)
    scale = groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -8
    q = (groups / scale.where(scale != 0, torch.ones_like(scale)) + 0.5).floor().clamp(-8, 7)
    return _weights(q * scale.half().float(), weight)


def _groups(weight: Tensor, size: int) -> Tensor:
    """The weights in the order they are stored, so many a row; the last is filled up with zeros."""
    flat = weight.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _weights(groups: Tensor, weight: Tensor) -> Tensor:
    """Groups in the weight's shape."""
    return groups.flatten()[: weight.numel()].view_as(weight)


_ROUNDED: dict[NumberType, Callable[[Tensor], Tensor]] = {
    "int8": partial(integers, bits=8),
    "int4": partial(integers, bits=4),
    "nf4": normal_floats,
    "q4_0": blocks,
}


@cache
def normal_levels() -> list[float]:
    """The sixteen numbers of ``nf4``, ascending from -1 to 1: seven below zero, zero, eight above."""

    def quantiles(count: int) -> list[float]:
        step = (_OUTERMOST - 0.5) / count
        return [NormalDist().inv_cdf(_OUTERMOST - index * step) for index in range(count)]

    largest = quantiles(1)[0]
    below, above = ([value / largest for value in quantiles(count)] for count in (7, 8))
    return [*(-value for value in below), 0.0, *reversed(above)]
