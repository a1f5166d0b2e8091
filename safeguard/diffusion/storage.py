"""The type a tensor has on disk, where that is another than in memory.

Hardening computes in float32 whatever the base model is stored in. What is written has the base model's types again,
and what is checked has the values that those types can hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def stored_types(pipeline: Any, stored: Mapping[str, torch.dtype]) -> Iterator[tuple[Tensor, torch.dtype]]:
    """Every floating-point tensor of a pipeline's modules with the type it is stored in.

    Args:
        stored: name (``unet.conv_in.weight``) -> type. A tensor that it does not name, such as an eraser, takes the
            commonest type of its module; modules of which it names nothing are left out.
    """
    for part, module in pipeline.components.items():
        types = Counter(dtype for name, dtype in stored.items() if name.startswith(f"{part}."))
        if not types or not isinstance(module, torch.nn.Module):
            continue
        usual = types.most_common(1)[0][0]
        for name, value in module.state_dict(keep_vars=True).items():
            if value.is_floating_point():
                yield value, stored.get(f"{part}.{name}", usual)


@torch.no_grad()
def round_to_stored(pipeline: Any, stored: Mapping[str, torch.dtype]) -> list[torch.dtype]:
    """Give every tensor the value that it will have once it is stored; its type in memory stays.

    Returns:
        The types that numbers were rounded to.
    """
    narrower = set()
    for value, dtype in stored_types(pipeline, stored):
        if torch.finfo(dtype).bits < torch.finfo(value.dtype).bits:
            value.copy_(value.to(dtype))
            narrower.add(dtype)
    return sorted(narrower, key=str)


def cast_to_stored(pipeline: Any, stored: Mapping[str, torch.dtype]) -> None:
    """Give every tensor the type that it is stored in; afterwards the pipeline is for writing only."""
    for value, dtype in stored_types(pipeline, stored):
        value.data = value.data.to(dtype)
