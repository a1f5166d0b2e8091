"""What a generator does to artwork, imitated: geometry, colour, softness, noise and block artefacts.

The detector sees images drawn by models it was not trained with, so it must not lean on sharp edges or exact colours,
and it must learn what shows nothing at all. All tensors are float (n, 3, h, w) in [-1, 1], white is 1.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def _chosen(changed: Tensor, images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """``changed`` for a random share of the rows, ``images`` for the others."""
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < share, changed, images)


def move(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift up to 10 % of the edge, scale 0.75-1.15, turn up to 15 degrees, mirror a third; the border is white."""
    n = len(images)
    angle = _uniform(n, -math.pi / 12, math.pi / 12, generator).flatten()
    scale = 1 / _uniform(n, 0.75, 1.15, generator).flatten()
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < 1 / 3).float()
    shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.4
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([mirror * cosine, -sine, shift[:, 0], mirror * sine, cosine, shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.view(n, 2, 3), list(images.shape), align_corners=False)
    return 1 - functional.grid_sample(1 - images, grid, align_corners=False)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mild changes of saturation, contrast, brightness and of each channel."""
    n = len(images)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(n, 0.8, 1.15, generator)
    images = (images - 1) * _uniform(n, 0.85, 1.1, generator) + 1
    tint = 1 + 0.05 * torch.randn(n, 3, 1, 1, generator=generator)
    return ((images - 1) * tint + 1 + 0.03 * torch.randn(n, 3, 1, 1, generator=generator)).clamp(-1, 1)


def soften(images: Tensor, smallest: int, largest: int, generator: torch.Generator) -> Tensor:
    """Lose detail by going through a smaller image of some size, as a small autoencoder does."""
    size = int(torch.randint(smallest, largest + 1, (), generator=generator))
    small = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return functional.interpolate(small, size=images.shape[-2:], mode="bicubic", align_corners=False)


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add fine noise and blotches of 4 pixels (the footprint of one latent cell)."""
    n, channels, height, width = images.shape
    fine = torch.randn(images.shape, generator=generator) * _uniform(n, 0, 0.1, generator)
    cells = torch.randn(n, channels, height // 4, width // 4, generator=generator) * _uniform(n, 0, 0.15, generator)
    return images + fine + functional.interpolate(cells, scale_factor=4, mode="bilinear", align_corners=False)


@cache
def _cosines() -> Tensor:
    """The orthonormal DCT-II matrix of order 8."""
    k = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def compress(images: Tensor, generator: torch.Generator) -> Tensor:
    """Block artefacts: 8 x 8 cosine transform, coefficients rounded more coarsely the higher their frequency."""
    n, channels, height, width = images.shape
    blocks = images.view(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    transform = _cosines()
    order = torch.arange(8.0)
    step = (0.05 + 0.05 * (order[:, None] + order[None])) * _uniform(n, 0.2, 2.0, generator)[..., None, None]
    rounded = (transform @ blocks @ transform.T / step).round() * step
    return (transform.T @ rounded @ transform).transpose(3, 4).reshape(images.shape)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random variant of every image, still in [-1, 1]; its artwork style stays recognisable."""
    images = recolour(move(images, generator), generator)
    images = _chosen(soften(images, 24, 48, generator), images, 0.5, generator)
    images = _chosen(disturb(images, generator), images, 0.4, generator)
    return _chosen(compress(images, generator), images, 0.2, generator).clamp(-1, 1)


def restyle(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same as if by another hand: colours mixed anew, contours drawn, fills paler, fewer tones, less detail."""
    n = len(images)
    mix = torch.eye(3) + 0.4 * torch.randn(n, 3, 3, generator=generator)
    ink = torch.einsum("nij,njhw->nihw", mix / mix.sum(dim=2, keepdim=True).clamp(min=0.5), 1 - images)
    ink = _chosen(ink, 1 - images, 0.6, generator)
    grey = images.mean(dim=1, keepdim=True)
    contour = functional.max_pool2d(grey, 3, stride=1, padding=1) + functional.max_pool2d(-grey, 3, stride=1, padding=1)
    drawn = ink * _uniform(n, 0.15, 1.0, generator) + contour.clamp(max=1) * _uniform(n, 0.5, 2.5, generator)
    images = (1 - _chosen(drawn, ink, 0.6, generator)).clamp(-1, 1)
    tones = _uniform(n, 1, 5, generator).round()
    images = _chosen((images * tones).round() / tones, images, 0.3, generator)
    return _chosen(soften(images, 16, 32, generator), images, 0.3, generator).clamp(-1, 1)


def _hidden(images: Tensor, generator: torch.Generator) -> Tensor:
    """A soft-edged part of each image, up to about half of it, is not drawn: white, or one colour."""
    n, _, height, width = images.shape
    cells = torch.randn(n, 1, 5, 5, generator=generator)
    field = functional.interpolate(cells, size=(height, width), mode="bicubic", align_corners=False)
    drawn = torch.sigmoid(6 * (field + _uniform(n, 0.1, 1.2, generator)))
    colour = _chosen(_uniform(3 * n, -1, 1, generator).view(n, 3, 1, 1), torch.ones(n, 3, 1, 1), 0.3, generator)
    return drawn * images + (1 - drawn) * colour


def _tinted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colours mixed anew, on white."""
    mix = torch.eye(3) + 0.5 * torch.randn(len(images), 3, 3, generator=generator)
    ink = torch.einsum("nij,njhw->nihw", mix / mix.sum(dim=2, keepdim=True).clamp(min=0.5), 1 - images)
    return 1 - ink


def fade(images: Tensor, generator: torch.Generator) -> Tensor:
    """As a model draws what it has just begun to relearn: paler, softer, in wrong colours, in part, over others.

    The first drawing stays the strongest thing in the image, so that its name is still right.
    """
    n = len(images)
    under = 1 - (1 - images.roll(1, dims=0)) * _uniform(n, 0.1, 0.4, generator)
    images = _chosen(torch.minimum(images, under), images, 0.2, generator)
    images = _chosen(_hidden(images, generator), images, 0.3, generator)
    images = _chosen(_tinted(images, generator), images, 0.3, generator)
    images = _chosen(soften(images, 10, 28, generator), images, 0.5, generator)
    images = _chosen(1 - (1 - images) * _uniform(n, 0.2, 0.8, generator), images, 0.6, generator)
    return _chosen(disturb(images, generator), images, 0.5, generator).clamp(-1, 1)


def _shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """The 16 x 16 pieces of each image in random order: textures and colours of an object, but no object."""
    n, _, height, width = images.shape
    pieces = functional.unfold(images, 16, stride=16)
    order = torch.rand(n, 1, pieces.shape[2], generator=generator).argsort(dim=2).expand_as(pieces)
    return functional.fold(pieces.gather(2, order), (height, width), 16, stride=16)


def nothing(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images that show nothing, as many as given: plain, noise of every grain, washed-out mixtures, shuffled pieces.

    This is what a broken model draws; a detector must not call it anything.
    """
    n, size = len(images), images.shape[-1]
    colour = _uniform(3 * n, -1, 1, generator).view(n, 3, 1, 1)
    plain = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.3, torch.ones(()), colour)
    grain = int(torch.tensor([1, 1, 2, 4, 8, 16])[torch.randint(6, (), generator=generator)])
    cells = torch.randn(n, 3, size // grain, size // grain, generator=generator)
    noise = functional.interpolate(cells, size=(size, size), mode="bicubic", align_corners=False)
    noise = plain * 0.5 + noise * _uniform(n, 0.1, 1.0, generator)
    mixture = sum((images.roll(k, dims=0) for k in range(1, 4)), images) / 4
    tiny = functional.interpolate(mixture, size=(6, 6), mode="bilinear", antialias=True, align_corners=False)
    washed = functional.interpolate(tiny, size=(size, size), mode="bicubic", align_corners=False)
    drowned = 0.15 * images + noise
    kinds = torch.stack([plain.expand_as(images), noise, washed, _shuffled(images, generator), drowned])
    kind = torch.randint(len(kinds), (n,), generator=generator)
    return kinds[kind, torch.arange(n)].clamp(-1, 1)
