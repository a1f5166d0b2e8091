"""Counts what a computation keeps in memory, exactly and without a GPU: on the meta device, where tensors have no data.

Allocator slack and the workspaces of kernels are not counted.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operator makes counts until it is freed; what was there before does not.

    Attributes:
        live: bytes now.
        peak: most bytes at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, made = (args, kwargs), func(*args, **(kwargs or {}))
        for value in tree_leaves(given):
            self._meet(value, new=False)
        for value in tree_leaves(made):
            self._meet(value, new=True)
        self.peak = max(self.peak, self.live)
        return made

    def _meet(self, value: Any, *, new: bool) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if new else 0
            self.live += self._sizes[key]
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
