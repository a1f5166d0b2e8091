"""Named groups of a denoiser's parameters: the one way a method says what it trains.

Names are those of diffusers' UNet, such as ``mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight``: attn1 is
self-attention, attn2 cross-attention. Tensors and numbers in Stable Diffusion 1.x:

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
==================  =======  ===========
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from safeguard.errors import UsageFault
from safeguard.registry import suggest

if TYPE_CHECKING:
    from torch import nn


def _not_time(name: str) -> bool:
    # conv_norm_out is trained: the published diffusers ports leave out conv_out only
    return not name.startswith(("time_embed", "conv_out."))


GROUPS: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "no-time": _not_time,
    "no-cross-attention": lambda name: "attn2" not in name and _not_time(name),
    "attention": lambda name: re.search(r"\battn[12]\.to_(q|k|v|out)\b", name) is not None,
    "self-attention": lambda name: "attn1" in name,
    "cross-attention": lambda name: "attn2" in name,
    "cross-attention-kv": lambda name: re.search(r"\battn2\.to_[kv]\b", name) is not None,
}
"""Group -> does the parameter of that name belong to it? ``no-cross-attention`` is ESD-u, ``cross-attention`` ESD-x."""


def select(module: nn.Module, group: str) -> dict[str, nn.Parameter]:
    """The module's parameters of a group, by name, in the module's order.

    Raises:
        UsageFault: unknown group (a near one is suggested), or the module has no such parameter.
    """
    if group not in GROUPS:
        raise UsageFault(f"unknown parameter group {group!r}", fix=suggest(group, list(GROUPS)))
    selected = {name: parameter for name, parameter in module.named_parameters() if GROUPS[group](name)}
    if not selected:
        raise UsageFault(
            f"the parameter group {group!r} selects nothing in {type(module).__name__}",
            fix="choose another group, for example 'full'",
        )
    return selected
