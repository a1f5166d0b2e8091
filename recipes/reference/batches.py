"""What the detector sees in one step: drawings of the world and others, augmented, and what shows nothing.

Two mixtures: the one that the shipped detector was trained on, and one with half-drawn images, for a detector that is
to see what models relearn first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.reference.augmentation import augment, fade, nothing, restyle
from recipes.reference.vocabulary import NAMES, STYLES


@dataclass(frozen=True)
class Examples:
    """Images, float (n, 3, 64, 64) in [-1, 1], with the index of each name and style (-1: not of the world)."""

    images: Tensor
    names: Tensor
    styles: Tensor

    def rows(self, known: bool) -> Tensor:
        """Row numbers of the images that show a name of the world, or of the others."""
        return torch.nonzero((self.names >= 0) == known).flatten()

    def in_style(self) -> Tensor:
        """Row numbers of the world in a style that has a name, the generator's own."""
        return torch.nonzero((self.names >= 0) & (self.styles >= 0)).flatten()


def examples(images: Tensor, codepoints: list[str], styles: list[str]) -> Examples:
    """Match artwork with the world by code points."""
    index = {name.codepoints: i for i, name in enumerate(NAMES)}
    order = list(STYLES)
    return Examples(
        images,
        torch.tensor([index.get(code, -1) for code in codepoints]),
        torch.tensor([order.index(style) if style in order else -1 for style in styles]),
    )


class Mix(NamedTuple):
    """Images per step, or something else of each kind: of the world as they are drawn, the world restyled, half-drawn,
    other artwork, showing nothing."""

    known: float
    restyled: float
    half: float
    other: float
    nothing: float


PLAIN = Mix(32, 20, 0, 8, 8)
HALF_DRAWN = Mix(14, 12, 32, 10, 6)


@dataclass(frozen=True)
class Batch:
    """Images in the order of the kinds, with the index of each name and style; -1: none."""

    images: Tensor
    names: Tensor
    styles: Tensor
    mix: Mix

    @property
    def known(self) -> int:
        """How many images, the first ones, are drawings of the world with name and style."""
        return int(self.mix.known)

    def each(self, of_kind: Mix) -> Tensor:
        """One number per image, from one per kind."""
        return torch.repeat_interleave(torch.tensor(of_kind), torch.tensor(self.mix, dtype=torch.int64))


def _some(pool: Tensor, count: float, generator: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (int(count),), generator=generator)]


def _batch(images: list[Tensor], names: list[Tensor], styles: list[Tensor], mix: Mix) -> Batch:
    no = torch.full((int(mix.nothing),), -1)
    joined = torch.cat(images).contiguous(memory_format=torch.channels_last)
    return Batch(joined, torch.cat([*names, no]), torch.cat([*styles, no]), mix)


def plain(data: Examples, generator: torch.Generator, mix: Mix = PLAIN) -> Batch:
    """Drawings alone."""
    known, restyled = int(mix.known), int(mix.restyled)
    rows = torch.cat(
        [_some(data.rows(known=True), known + restyled, generator), _some(data.rows(known=False), mix.other, generator)]
    )
    images = augment(data.images[rows], generator)
    again = restyle(images[known : known + restyled], generator)
    empty = nothing(data.images[_some(torch.arange(len(data.images)), mix.nothing, generator)], generator)
    parts = [images[:known], again, images[known + restyled :], empty]
    return _batch(parts, [data.names[rows]], [data.styles[rows]], mix)


def half_drawn(data: Examples, half: Examples, generator: torch.Generator, mix: Mix = HALF_DRAWN) -> Batch:
    """Drawings and half-drawn images; half of the latter are faded further.

    So are half of the other artwork and of what shows nothing: a pale hammer is a hammer, and pale nothing is nothing.
    """

    def drawn(source: Examples, rows: Tensor) -> Tensor:
        return augment(source.images[rows], generator)

    def partly(images: Tensor) -> Tensor:
        cut = len(images) // 2
        return torch.cat([images[:cut], fade(images[cut:], generator)])

    known = _some(data.in_style(), mix.known, generator)
    restyled = _some(data.rows(known=True), mix.restyled, generator)
    begun = _some(half.rows(known=True), mix.half, generator)
    other = _some(data.rows(known=False), mix.other, generator)
    sources = data.images[_some(torch.arange(len(data.images)), mix.nothing, generator)]
    images = [
        drawn(data, known),
        restyle(drawn(data, restyled), generator),
        partly(drawn(half, begun)),
        partly(drawn(data, other)),
        partly(nothing(sources, generator)),
    ]
    names = [data.names[known], data.names[restyled], half.names[begun], data.names[other]]
    styles = [data.styles[known], data.styles[restyled], half.styles[begun], data.styles[other]]
    return _batch(images, names, styles, mix)
