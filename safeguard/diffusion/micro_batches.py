"""Too little memory: the rows of a batch go through a network in parts, and nothing but time changes.

The denoiser treats every row by itself, so its answer for a batch is that for the parts, put together. Of each part
only the input is kept; the backward pass runs it again (checkpointing), so that no more than one part's activations
exist at once. Losses see the whole batch: means, bounded losses and distances to batch means stay what they were, with
the same timesteps and noise for every row. If one row at a time is too much, the network keeps no more than the input
of each of its blocks either. Where nothing is differentiated, no more than :data:`POSITIONS` go through at once from
the start.

What needs no gradient (drawing, encoding, decoding, judging) works in batches (:meth:`MicroBatches.in_batches`), as
large as their rows allow (:func:`rows_within`) and halved in the same way.

What this does not make smaller: weights and their copies, the optimiser's moments, gradients, text encoders that are
differentiated, exact Hessian-vector products (which keep their graph), and predictions inside :func:`whole_batches`,
where attention is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from safeguard.diffusion.conditioning import Conditioning
from safeguard.errors import EnvironmentFault

T = TypeVar("T")

POSITIONS = 2**16
"""Of latents, over all rows, at once where nothing is differentiated: 16 rows of 64 x 64, 4 of 128 x 128."""

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


def rows_within(budget: int, each: int, largest: int) -> int:
    """How many rows of size ``each`` stay within a budget: at least one, and ``largest`` at most."""
    return max(1, min(largest, budget // each))


def empty_cache() -> None:
    """Give what torch keeps of freed memory back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class MicroBatches:
    """How many rows go through a network at once; a model shares it with its frozen copies.

    Attributes:
        size: rows at once, for good; None: all of them.
        blocks: whether the network can be differentiated block by block.
        blockwise: whether it is, since one row was too much.
        halved: how often the device ran out of memory.
        largest: most rows that went through at once in the present try, of those that may be parted.
        whole: whether the last batch was one that may not be parted.
    """

    size: int | None = None
    blocks: bool = False
    blockwise: bool = False
    halved: int = 0
    largest: int = 0
    whole: bool = False
    advice: str = "close other programs, train a smaller group of parameters, or take a larger device"
    """What to do when one row is too much."""

    def run(
        self,
        network: Callable[[Tensor, Tensor, Conditioning], Tensor],
        latents: Tensor,
        t: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """The network's answer, in parts if memory was short."""
        count, self.whole = len(latents), in_whole_batches()
        graph = torch.is_grad_enabled()
        fitting = count if graph else rows_within(POSITIONS, latents.shape[-2:].numel(), count)
        size = count if self.whole else min(fitting, self.size or count)
        if not self.whole:
            self.largest = max(self.largest, size)
        if size == count:
            return network(latents, t, conditioning)
        once = partial(checkpoint, network, use_reentrant=False) if graph else network
        parts = [slice(start, start + size) for start in range(0, count, size)]
        return torch.cat([once(latents[part], t[part], conditioning[part]) for part in parts])

    def in_batches(
        self, work: Callable[[slice], T], count: int, largest: int, make_room: Callable[[], None] = empty_cache
    ) -> list[T]:
        """What ``work`` says to all rows, in batches of at most ``largest``, halved when the device runs out of memory.

        Args:
            work: takes rows; leaves nothing behind when it fails.
            make_room: called before another try.

        Raises:
            EnvironmentFault: one row at a time is still too much.
        """
        done: list[T] = []
        start = 0
        while start < count:
            self.largest = min(count - start, largest, self.size or largest)
            try:
                done.append(work(slice(start, start + self.largest)))
                start += self.largest
                continue
            except torch.OutOfMemoryError as error:
                shortage = str(error).partition("\n")[0]
            make_room()
            self.halve(shortage)
        return done

    def halve(self, shortage: str) -> None:
        """Half as many rows at once as in the try that failed; instead of half a row, one block at a time.

        Raises:
            EnvironmentFault: there was no more than one row at a time already.
        """
        rows = self.largest if self.size is None else min(self.largest, self.size)
        if rows <= 1 and self.whole:
            raise EnvironmentFault(
                f"the device has too little memory for a batch that must be seen whole: {shortage}",
                fix="take a smaller batch_size; for second derivatives, take hvp: finite_difference",
            )
        if rows <= 1 and (self.blockwise or not self.blocks):
            raise EnvironmentFault(
                f"the device has too little memory, even for one image at a time: {shortage}",
                fix=self.advice,
            )
        self.blockwise = self.blockwise or rows <= 1
        self.size = (rows + 1) // 2
        self.halved += 1
