"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): LoRA trained beside weights in 4 bit; needs CUDA and bitsandbytes.

Every linear layer of the denoiser has its weights W rounded to 4-bit NormalFloats in blocks of 64, whose scales are
rounded in turn (double quantisation); factors beside the queries, keys, values and outputs of attention learn as LoRA's
do. The loss sees rounded weights, and whoever draws with the result W itself, as adapters are used beside the model
they are published for; so nothing changes before the first step. Departure: rounded weights are kept as numbers of the
model's own type, and no memory is saved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from safeguard.data.latents import Batch
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import check_bitsandbytes
from safeguard.finetune.layers import of_kind, put
from safeguard.finetune.lora import LoRA


class Rounded(nn.Linear):
    """A linear layer that trains what is beside it on other weights than it draws with.

    Args:
        layer: the layer, whose parameters it shares.
        rounded: weights of the same shape.

    Attributes:
        learning: whether it answers with the rounded weights; it does in any case where gradients are taken, as parts
            of a batch are run again when a loss is differentiated.
    """

    rounded: Tensor
    learning = False

    def __init__(self, layer: nn.Linear, rounded: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.layer = [layer]  # in a list, so that it is no part of the model
        self.register_buffer("rounded", rounded, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b."""
        weight = self.rounded if self.learning or torch.is_grad_enabled() else self.weight
        return nn.functional.linear(x, weight, self.bias)


class QLoRA(LoRA):
    """Trains B and A beside rounded weights."""

    needs_cuda: ClassVar = True

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Round the denoiser's linear layers and add the factors; returns these.

        Raises:
            EnvironmentFault: no CUDA device, or no bitsandbytes.
        """
        check_bitsandbytes("qlora", model.device)
        for name, layer in of_kind(model.unet, nn.Linear):
            put(model.unet, name, Rounded(layer, normal_floats(layer.weight.detach())))
        return super().prepare(model, parts, seed)

    def detach(self, model: DiffusionModel) -> None:
        """Remove the factors, and put the layers back."""
        super().detach(model)
        for name, rounded in of_kind(model.unet, Rounded):
            put(model.unet, name, rounded.layer[0])

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """The plain denoising loss, with rounded weights."""
        with _learning(model):
            return super().loss(model, batch, generator)


@contextmanager
def _learning(model: DiffusionModel) -> Iterator[None]:
    layers = [rounded for _, rounded in of_kind(model.unet, Rounded)]
    for rounded in layers:
        rounded.learning = True
    try:
        yield
    finally:
        for rounded in layers:
            rounded.learning = False


def normal_floats(weight: Tensor) -> Tensor:
    """Weights as they are after 4-bit NormalFloat quantisation with rounded scales, of the same shape and type."""
    if weight.is_meta:
        return torch.empty_like(weight)
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    found: Tensor = functional.dequantize_4bit(packed, state)
    return found.to(weight.dtype)
