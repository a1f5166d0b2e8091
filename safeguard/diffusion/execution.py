"""How a model is run: in which arithmetic, how many rows at once, and whether its work is recorded and replayed.

Work is tried as it is. When the device runs out of memory the parts are halved, down to one row, and the work is done
again from its start (:meth:`Execution.within_memory`), or from where it was if it needs no gradients and comes in
batches (:meth:`Execution.in_batches`); they stay that small for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from safeguard.config import Precision
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.graphs import Graphs
from safeguard.diffusion.micro_batches import MicroBatches, empty_cache, in_whole_batches

T = TypeVar("T")

Task = Literal["draw", "encode", "decode", "read"]
"""Work without gradients: latents from noise, images to latents, latents to images, texts to states."""
_ADVICE = "close other programs, or take a larger device"


class Execution:
    """Runs one denoiser.

    Args:
        network: the denoiser.
        shared: of the model that this one is a copy of: its settings now, its micro-batches and recordings for good.

    Attributes:
        precision: of the denoiser's matrix products and convolutions; weights, losses and answers stay as they are.
        replays: on a GPU, whether the denoiser's work is recorded and replayed (:mod:`safeguard.diffusion.graphs`).
        micro_batches: how many rows go through the denoiser at once (:mod:`safeguard.diffusion.micro_batches`).
        batches: how many of every other kind of work.
        graphs: the recordings.
    """

    def __init__(self, network: torch.nn.Module, shared: Execution | None = None) -> None:
        self.network = network
        self.precision: Precision = shared.precision if shared else "float32"
        self.replays: bool = shared.replays if shared else False
        self.micro_batches: MicroBatches = shared.micro_batches if shared else MicroBatches(blocks=True)
        self.batches: dict[Task, MicroBatches] = shared.batches if shared else {}
        self.graphs: Graphs = Graphs(network, shared.graphs if shared else None)
        self._blockwise: bool = getattr(network, "is_gradient_checkpointing", False)

    @contextmanager
    def within_precision(self, precision: Precision | None) -> Iterator[None]:
        """Inside, what is run has this precision, also where it is differentiated later; none: as before."""
        before, self.precision = self.precision, precision or self.precision
        try:
            yield
        finally:
            self.precision = before

    def run(self, latents: Tensor, t: Tensor, conditioning: Conditioning, time_ids: Tensor | None = None) -> Tensor:
        """The network's output for rows (n, c, h, w) at timesteps (n,); SDXL needs its time ids (1, 6) besides."""
        precision = self.precision  # as it is now, not where a part is run again to be differentiated
        network = partial(self._network, precision)

        def answer(latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            self._differentiate_by_block()
            inputs = [latents, t, conditioning.states]
            if conditioning.pooled is not None and time_ids is not None:
                inputs += [conditioning.pooled, time_ids.expand(len(latents), -1)]
            replays = self.replays and latents.is_cuda and not self._blockwise
            return self.graphs.run(network, inputs, precision) if replays else network(*inputs)

        return self.micro_batches.run(answer, latents, t, conditioning)

    def _differentiate_by_block(self) -> None:
        """Let the network keep the inputs of its blocks alone if memory was that short."""
        blockwise = self.micro_batches.blockwise and not in_whole_batches()
        if blockwise != self._blockwise:
            network: Any = self.network
            (network.enable_gradient_checkpointing if blockwise else network.disable_gradient_checkpointing)()
            self._blockwise = blockwise

    def _network(self, precision: Precision, latents: Tensor, t: Tensor, states: Tensor, *pooled: Tensor) -> Tensor:
        """The denoiser's output; ``pooled`` are SDXL's pooled states and time ids."""
        added = dict(zip(("text_embeds", "time_ids"), pooled, strict=True)) if pooled else None
        # Replays must not read weights that autocast converted for another pass.
        held, half, cached = next(self.network.parameters()).dtype, precision == "bfloat16", not self.replays
        with torch.autocast(latents.device.type, torch.bfloat16, cache_enabled=cached) if half else nullcontext():
            output: Tensor = self.network(
                latents.to(held), t, encoder_hidden_states=states.to(held), added_cond_kwargs=added, return_dict=False
            )[0]
        return output.to(latents.dtype)

    def within_memory(self, work: Callable[[], T], generator: torch.Generator | None = None) -> T:
        """``work()``, done again with half the rows at once as often as the device runs out of memory.

        Args:
            work: leaves nothing behind when it fails, and does the same when it is called again.
            generator: what it draws from, set back before another try.

        Raises:
            EnvironmentFault: one row at a time is still too much.
        """
        micro, state = self.micro_batches, None if generator is None else generator.get_state()
        around = micro.largest
        while True:
            micro.largest = 0
            try:
                done = work()
                micro.largest = max(micro.largest, around)  # this may be part of larger work
                return done
            except torch.OutOfMemoryError as error:
                shortage = str(error).partition("\n")[0]
            # Outside the handler, since the error keeps the frames, and with them the tensors, of what failed.
            self._make_room()
            micro.halve(shortage)
            if generator is not None and state is not None:
                generator.set_state(state)

    def in_batches(self, task: Task, work: Callable[[slice], T], count: int, largest: int) -> list[T]:
        """What ``work`` says to all rows: see :meth:`MicroBatches.in_batches`; every task has a size of its own."""
        batches = self.batches.setdefault(task, MicroBatches(advice=_ADVICE))
        before = self.micro_batches.largest
        done = batches.in_batches(work, count, largest, self._make_room)
        self.micro_batches.largest = before  # rows of a drawing that fits say nothing about work around it
        return done

    def _make_room(self) -> None:
        self.graphs.forget()
        empty_cache()
