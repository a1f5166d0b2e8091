"""Too little memory: the rows of a batch go through the denoiser in parts, and nothing but time changes.

The denoiser treats every row by itself, so its answer for a batch is that for the parts, put together. Of each part
only the input is kept; the backward pass runs it again (checkpointing), so that no more than one part's activations
exist at once. Losses see the whole batch: means, bounded losses and distances to batch means stay what they were, with
the same timesteps and noise for every row.

What this does not make smaller: weights and their copies, the optimiser's moments, gradients, text encoders, exact
Hessian-vector products (which keep their graph), and predictions inside :func:`whole_batches`, where attention is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from safeguard.diffusion.conditioning import Conditioning
from safeguard.errors import EnvironmentFault

_whole: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def whole_batches() -> Iterator[None]:
    """Inside, no batch is parted: for who reads what happens in the denoiser, by hooks, or differentiates it twice."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def in_whole_batches() -> bool:
    """Whether :func:`whole_batches` is in force."""
    return _whole.get()


@dataclass
class MicroBatches:
    """How many rows go through the denoiser at once; a model shares it with its frozen copies.

    Attributes:
        size: rows at once; None: all of them.
        halved: how often the device ran out of memory.
        largest: most rows that went through at once in the present try, of those that may be parted.
        whole: whether the last batch was one that may not be parted.
    """

    size: int | None = None
    halved: int = 0
    largest: int = 0
    whole: bool = False

    def run(
        self,
        network: Callable[[Tensor, Tensor, Conditioning], Tensor],
        latents: Tensor,
        t: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """The network's answer, in parts if memory was short."""
        count, self.whole = len(latents), in_whole_batches()
        size = count if self.whole or self.size is None else min(count, self.size)
        if not self.whole:
            self.largest = max(self.largest, size)
        if size == count:
            return network(latents, t, conditioning)
        once = partial(checkpoint, network, use_reentrant=False) if torch.is_grad_enabled() else network
        parts = [slice(start, start + size) for start in range(0, count, size)]
        return torch.cat([once(latents[part], t[part], conditioning[part]) for part in parts])

    def halve(self, shortage: str) -> None:
        """Half as many rows at once as in the try that failed.

        Raises:
            EnvironmentFault: there was no more than one row at a time already.
        """
        rows = self.largest if self.size is None else min(self.largest, self.size)
        if rows <= 1 and self.whole:
            raise EnvironmentFault(
                f"the device has too little memory for a batch that must be seen whole: {shortage}",
                fix="take a smaller batch_size; for second derivatives, take hvp: finite_difference",
            )
        if rows <= 1:
            raise EnvironmentFault(
                f"the device has too little memory, even for one image at a time: {shortage}",
                fix="close other programs, train a smaller group of parameters, or take a larger device",
            )
        self.size = (rows + 1) // 2
        self.halved += 1
