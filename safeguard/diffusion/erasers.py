"""Erasers: small adapters after cross-attention (Receler, arXiv 2311.17717), in memory, folded away, and on disk.

A cross-attention's output h (n, pixels, width) becomes h + E(h) with E(h) = up(act(down(h))), two linear layers with
biases, width -> rank -> width; ``up`` starts at zero, so that nothing changes before the first step.

*Linear* erasers (act is the identity) are folded into the projection that gave h, W -> W + U D W, which is exact: the
result is a plain model, and there is nothing that could be left out. *GELU* erasers cannot be folded. They are stored
among the denoiser's weights as ``….attn2.eraser.down.weight`` and so on: plain diffusers opens such a directory, names
these weights as unused in a warning, and has the model without them; ours puts them in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from safeguard.diffusion.model import DiffusionModel

Activation = Literal["linear", "gelu"]
_NAME = "eraser"


class Eraser(nn.Module):
    """E: (n, pixels, width) -> the same shape.

    Args:
        width: of the attention's output.
        rank: of the layer between.
        activation: ``linear`` (none) or ``gelu``.
    """

    def __init__(self, width: int, rank: int, activation: Activation) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.activation = activation
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """What is added to the attention's output."""
        inner = self.down(hidden)
        result: Tensor = self.up(inner if self.activation == "linear" else nn.functional.gelu(inner))
        return result


def _erase(attention: Any, inputs: Any, output: Tensor) -> Tensor:
    erased: Tensor = output + attention.eraser(output)
    return erased


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """All cross-attentions of a denoiser by name."""
    return {name: module for name, module in unet.named_modules() if name.endswith("attn2")}


def _attach(attention: Any, eraser: Eraser) -> None:
    weight = attention.to_out[0].weight
    attention.eraser = eraser.requires_grad_(False).to(weight.device, weight.dtype)
    attention.register_forward_hook(_erase)


def _detach(attention: Any) -> None:
    delattr(attention, _NAME)
    for key, hook in list(attention._forward_hooks.items()):
        if hook is _erase:
            del attention._forward_hooks[key]


def attach(unet: nn.Module, *, rank: int, activation: Activation, seed: int) -> None:
    """A new eraser after every cross-attention that has none; ``down`` depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        for attention in cross_attentions(unet).values():
            if not hasattr(attention, _NAME):
                _attach(attention, Eraser(len(attention.to_out[0].weight), rank, activation))


def erasers(unet: nn.Module) -> dict[str, Eraser]:
    """The erasers of a denoiser, by the name of their cross-attention."""
    return {name: module.eraser for name, module in cross_attentions(unet).items() if hasattr(module, _NAME)}


def has_erasers(unet: nn.Module) -> bool:
    """Whether any cross-attention has one."""
    return bool(erasers(unet))


def parameter_names(unet: nn.Module) -> set[str]:
    """Names of the parameters that are erasers'."""
    return {f"{name}.{_NAME}.{key}" for name, eraser in erasers(unet).items() for key, _ in eraser.named_parameters()}


@contextmanager
def aside(unet: nn.Module) -> Iterator[None]:
    """Inside, the denoiser has no erasers; then it has the same ones again."""
    found = erasers(unet)
    for name in found:
        _detach(unet.get_submodule(name))
    try:
        yield
    finally:
        for name, eraser in found.items():
            _attach(unet.get_submodule(name), eraser)


@torch.no_grad()
def fold(model: DiffusionModel) -> list[str]:
    """Fold the linear erasers into the weights and take them away; GELU ones stay.

    W' = W + U D W and b' = b + U (D b + d) + u, computed in float64.

    Returns:
        Names of the parameters that hold them now (``unet.….attn2.to_out.0.weight``).
    """
    changed = []
    for name, eraser in erasers(model.unet).items():
        if eraser.activation != "linear":
            continue
        attention = model.unet.get_submodule(name)
        project: Any = attention.to_out[0]
        down, up = eraser.down, eraser.up
        update = up.weight.double() @ down.weight.double()
        bias = project.bias.double()
        bias = bias + update @ bias + up.weight.double() @ down.bias.double() + up.bias.double()
        project.weight.copy_(project.weight.double() + update @ project.weight.double())
        project.bias.copy_(bias)
        _detach(attention)
        changed += [f"unet.{name}.to_out.0.{kind}" for kind in ("weight", "bias")]
    return changed


def load(unet: nn.Module, weights: Mapping[str, Tensor], ranks: Mapping[str, int]) -> None:
    """Put stored erasers in place, frozen.

    Args:
        weights: the denoiser's, by name as they are stored.
        ranks: cross-attention -> rank of its eraser, as the pre-flight found it.
    """
    attentions = cross_attentions(unet)
    for name, rank in ranks.items():
        attention, prefix = attentions[name], f"{name}.{_NAME}."
        eraser = Eraser(len(attention.to_out[0].weight), rank, "gelu")
        eraser.load_state_dict({key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)})
        _attach(attention, eraser)
