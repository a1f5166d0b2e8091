"""Layers of a network that others stand in for while a method is attached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def of_kind(root: nn.Module, *kinds: type[M]) -> Iterator[tuple[str, M]]:
    """Name and module of all of these kinds, as they are now; the network may be changed on the way."""
    for name, module in list(root.named_modules()):
        if isinstance(module, kinds):
            yield name, module


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Have a module in the place of that name."""
    above, _, last = name.rpartition(".")
    setattr(root.get_submodule(above), last, module)
