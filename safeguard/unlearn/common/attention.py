"""Cross-attention maps of a denoiser, collected while it runs, and masks made from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.micro_batches import whole_batches
from safeguard.diffusion.model import DiffusionModel


@contextmanager
def cross_attention_maps(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Collect softmax(q k^T / sqrt(d)) of every cross-attention, differentiable, in the order in which they run.

    The denoiser itself runs as ever: queries and keys are read beside it, adapters on them included.

    Yields:
        A list that a forward pass fills with tensors (n, heads, pixels, tokens).
    """
    maps: list[Tensor] = []
    handles: list[RemovableHandle] = []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            seen: dict[str, Tensor] = {}
            handles += [
                module.get_submodule("to_q").register_forward_hook(partial(_keep, seen, "q")),
                module.get_submodule("to_k").register_forward_hook(partial(_keep, seen, "k")),
                module.register_forward_hook(partial(_attend, seen, maps)),
            ]
    try:
        with whole_batches():
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: dict[str, Tensor], which: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    seen[which] = output


def _attend(seen: dict[str, Tensor], maps: list[Tensor], module: Any, inputs: Any, output: Tensor) -> None:
    q, k = (seen.pop(which).unflatten(-1, (module.heads, -1)).transpose(1, 2) for which in ("q", "k"))
    maps.append((widened(q) @ widened(k).transpose(-1, -2) * module.scale).softmax(-1))


def widened(values: Tensor) -> Tensor:
    """In float32 where the network answers in less, so that losses of what is read inside it are not rounded."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def resize_masks(masks: Tensor, pixels: int) -> Tensor:
    """Square masks (n, s, s) at the resolution of an attention map, by nearest neighbour: bool (n, pixels)."""
    side = isqrt(pixels)
    resized = nn.functional.interpolate(masks.float().unsqueeze(1), (side, side), mode="nearest")
    return resized.flatten(1) > 0.5


@torch.no_grad()
def attention_masks(
    model: DiffusionModel, latents: Tensor, t: Tensor, conditioning: Conditioning, tokens: Tensor, threshold: float
) -> Tensor:
    """Where an image attends to given words: their mean map over layers and heads, from 0 to 1, above ``threshold``.

    Args:
        latents: noisy latents (n, c, s, s) at timesteps ``t`` (n,).
        tokens: bool (n, tokens), the words.

    Returns:
        bool (n, s, s); never empty, since every map has its maximum.
    """
    with cross_attention_maps(model.unet) as maps:
        model.predict(latents, t, conditioning)
    side = latents.shape[-1]
    layers = []
    for attention in maps:
        on_words = (attention.mean(1) * tokens[:, None, :]).sum(-1)
        square = on_words.unflatten(-1, (isqrt(on_words.shape[-1]), -1)).unsqueeze(1)
        layers.append(nn.functional.interpolate(square, (side, side), mode="bilinear", align_corners=False)[:, 0])
    mean = torch.stack(layers).mean(0)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    return (mean - low) >= threshold * (high - low)
