"""Named groups of a model's parameters: the one way a method says what it trains.

A name is the part's, then its library's own: ``unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight``
(attn1 is self-attention, attn2 cross-attention), ``text_encoder.….layers.0.mlp.fc1.bias``. All groups but the last two
are of the denoiser. Tensors and numbers in Stable Diffusion 1.x:

==================  =======  ===========
group               tensors  numbers
==================  =======  ===========
full                686      859,520,964
no-time             680      857,458,880
no-cross-attention  600      813,496,320
attention           160      93,536,640
self-attention      80       49,574,080
cross-attention     80       43,962,560
cross-attention-kv  32       19,169,280
text-encoder        194      85,056,000
token-embedding     1        37,945,344
==================  =======  ===========

``text-encoder`` is all encoders without their embeddings of tokens and positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from safeguard.errors import UsageFault
from safeguard.registry import suggest

if TYPE_CHECKING:
    from torch import nn

    from safeguard.diffusion.model import DiffusionModel

_DENOISER = "unet."


def _not_time(name: str) -> bool:
    # conv_norm_out is trained: the published diffusers ports leave out conv_out only
    return not name.startswith(("time_embed", "conv_out."))


_OF_THE_DENOISER: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "no-time": _not_time,
    "no-cross-attention": lambda name: "attn2" not in name and _not_time(name),
    "attention": lambda name: re.search(r"\battn[12]\.to_(q|k|v|out)\b", name) is not None,
    "self-attention": lambda name: "attn1" in name,
    "cross-attention": lambda name: "attn2" in name,
    "cross-attention-kv": lambda name: re.search(r"\battn2\.to_[kv]\b", name) is not None,
}


def _in_denoiser(test: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: name.startswith(_DENOISER) and test(name.removeprefix(_DENOISER))


GROUPS: dict[str, Callable[[str], bool]] = {group: _in_denoiser(test) for group, test in _OF_THE_DENOISER.items()} | {
    "text-encoder": lambda name: name.startswith("text_encoder") and ".embeddings." not in f".{name}",
    "token-embedding": lambda name: name.startswith("text_encoder") and name.endswith(".token_embedding.weight"),
}
"""Group -> does the parameter of that name belong to it? ``no-cross-attention`` is ESD-u, ``cross-attention`` ESD-x."""


def select(model: DiffusionModel, group: str) -> dict[str, nn.Parameter]:
    """The model's parameters of a group, by name, in the model's order.

    Raises:
        UsageFault: unknown group (a near one is suggested), or the model has no such parameter.
    """
    if group not in GROUPS:
        raise UsageFault(f"unknown parameter group {group!r}", fix=suggest(group, list(GROUPS)))
    selected = {name: parameter for name, parameter in model.named_parameters().items() if GROUPS[group](name)}
    if not selected:
        raise UsageFault(
            f"the parameter group {group!r} selects nothing in this model",
            fix="choose another group, for example 'full'",
        )
    return selected


def exposed(model: DiffusionModel, group: str, parts: Collection[str] | None = None) -> dict[str, nn.Parameter]:
    """What a fine-tune of this group changes: the group, and all of every part beside the denoiser that was hardened.

    Args:
        parts: those parts, the denoiser among them; none: ``model.exposed_parts``.

    Raises:
        UsageFault: as :func:`select`.
    """
    chosen = select(model, group)
    beside = set(model.exposed_parts if parts is None else parts) - {"unet"}
    return {
        name: parameter
        for name, parameter in model.named_parameters().items()
        if name in chosen or name.partition(".")[0] in beside
    }


def parts_of(parameters: Iterable[str]) -> frozenset[str]:
    """The parts that the parameters of these names belong to."""
    return frozenset(name.partition(".")[0] for name in parameters)
