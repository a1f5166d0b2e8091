"""Several processes that harden one model together, as ``accelerate launch`` and ``torchrun`` start them.

Every process holds the whole model. What is the same for all (a descent without simulations) the main process does
alone and hands round; what is a sum over independent parts is shared out, and the parts are added with one all-reduce.
Networks are not wrapped: hooks that reduce gradients see neither ``autograd.grad`` nor second derivatives.

Nothing is drawn from a process's number, so that one process and many make the same model up to rounding.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safeguard.errors import EnvironmentFault, UsageFault

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long a process waits for the others: the main one may train a whole phase alone."""


def launched() -> tuple[int, int, int]:
    """Number of this process, how many there are, and its number on this machine; (0, 1, 0) if nobody launched it."""
    try:
        rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        return 0, 1, 0
    return rank, count, local


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:  # getrusage would count what the process was before it became this program
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory() -> int:
    """Bytes that new work may take without pushing others out; half of them all where the system does not tell."""
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
        return 1024 * int(facts.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Processes:
    """This process and its fellows.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        device: where tensors must lie to be exchanged.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: str = "cpu") -> None:
        self.rank = rank
        self.count = count
        self.device = device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes, speaks and keeps checkpoints."""
        return self.rank == 0

    def share(self, costs: Sequence[float]) -> list[int]:
        """Which of so many items are this process's: longest first, each to whoever has least to do so far.

        The main process, which has more to do besides, is the last to be given one. In the order of the items.
        """
        loads = [0.0] * self.count
        mine = []
        for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
            to = min(range(self.count), key=lambda rank: (loads[rank], -rank))
            loads[to] += costs[item]
            if to == self.rank:
                mine.append(item)
        return sorted(mine)

    def all_reduce(self, tensors: Sequence[Tensor], alike: Sequence[Tensor] = ()) -> list[Tensor]:
        """Each tensor added up over all processes, in one all-reduce.

        Args:
            tensors: the same shapes in every process.
            alike: what every process should hold alike; its norm travels along.

        Raises:
            EnvironmentFault: they do not.
        """
        if self.count == 1:
            return list(tensors)
        import torch
        import torch.distributed as distributed

        norms = torch.zeros(self.count, device=self.device)
        if alike:
            norms[self.rank] = torch.stack(torch._foreach_norm(list(alike))).norm()
        flat = torch.cat([tensor.detach().to(self.device).flatten() for tensor in (*tensors, norms)])
        distributed.all_reduce(flat)
        *added, norms = flat.split([tensor.numel() for tensor in (*tensors, norms)])
        if alike and len(set(norms.tolist())) > 1:
            raise EnvironmentFault(
                f"the processes do not hold the same weights (norms {norms.tolist()})",
                fix="run them on devices of one kind, with one version of every package; what was kept is kept",
            )
        return [part.view(tensor.shape).to(tensor) for part, tensor in zip(added, tensors, strict=True)]

    def gather(self, value: T) -> list[T]:
        """The value of every process, of any kind, by their numbers."""
        if self.count == 1:
            return [value]
        import torch.distributed as distributed

        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """The main process's values, in place."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as distributed

        with torch.no_grad():
            for tensor in tensors:
                values = tensor.detach().to(self.device).contiguous()
                distributed.broadcast(values, src=0)
                tensor.copy_(values)

    def broadcast_object(self, value: T | None) -> T:
        """The main process's value, of any kind, in every process; all wait for it."""
        told = self.gather(value)[0]
        assert told is not None, "the main process has something to tell"
        return told


ALONE = Processes()


def join(device: str) -> tuple[Processes, str]:
    """Meet the processes that were launched together with this one.

    Args:
        device: what the user asked for: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The processes, and the device of this one, still to be checked.

    Raises:
        UsageFault: several processes are told to use one GPU.
        EnvironmentFault: they do not find each other.
    """
    rank, count, local = launched()
    if count == 1:
        return ALONE, device
    import torch
    from accelerate import PartialState

    if ":" in device:
        raise UsageFault(f"{count} processes cannot share {device}", fix="leave --device out: each takes its own")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"process {rank} of {count} did not find the others: {error}",
            fix="start them with `accelerate launch -m safeguard harden …`",
        ) from error
    atexit.register(state.destroy_process_group)  # else its threads may still run while Python ends, which aborts
    mine = device if on_cpu else f"cuda:{local}"
    return Processes(state.process_index, state.num_processes, "cpu" if on_cpu else mine), mine
