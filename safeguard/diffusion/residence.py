"""Where weights lie while nobody computes with them: in main memory.

Main memory is pinned for a GPU, so that they come back at the speed of the bus. On a CPU the device is main memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn


def off_device(value: Tensor) -> Tensor:
    """A copy in main memory."""
    kept = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
    return kept.copy_(value.detach())


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def park(module: nn.Module) -> None:
    """Move a module into main memory; its parameters stay the same objects."""
    for value in tensors(module):
        if value.device.type != "cpu":
            value.data = off_device(value)


def fetch(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device; its parameters stay the same objects."""
    for value in tensors(module):
        if value.device != device:
            value.data = value.data.to(device, non_blocking=True)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Hold every number of a module in this type; its parameters stay the same objects."""
    for value in tensors(module):
        if value.is_floating_point():
            value.data = value.data.to(dtype)


def parked_copy(module: nn.Module) -> nn.Module:
    """A copy in main memory, of which no byte was on the device; it takes no gradients."""
    copies: dict[int, Tensor] = {id(value): nn.Parameter(off_device(value), False) for value in module.parameters()}
    copies |= {id(value): off_device(value) for value in module.buffers()}
    return copy.deepcopy(module, copies)
