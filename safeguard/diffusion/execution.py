"""How a denoiser is run: in which arithmetic, how many rows at once, and whether its work is recorded and replayed.

Work is tried as it is. When the device runs out of memory the parts are halved, down to one row, and the work is done
again from its start (:meth:`Execution.within_memory`); they stay that small for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from safeguard.config import Precision
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.graphs import Graphs
from safeguard.diffusion.micro_batches import MicroBatches

T = TypeVar("T")


class Execution:
    """Runs one denoiser.

    Args:
        network: the denoiser.
        shared: of the model that this one is a copy of: its settings now, its micro-batches and recordings for good.

    Attributes:
        precision: of the denoiser's matrix products and convolutions; weights, losses and answers stay as they are.
        replays: on a GPU, whether the denoiser's work is recorded and replayed (:mod:`safeguard.diffusion.graphs`).
        micro_batches: how many rows go through at once (:mod:`safeguard.diffusion.micro_batches`).
        graphs: the recordings.
    """

    def __init__(self, network: torch.nn.Module, shared: Execution | None = None) -> None:
        self.network = network
        self.precision: Precision = shared.precision if shared else "float32"
        self.replays: bool = shared.replays if shared else False
        self.micro_batches: MicroBatches = shared.micro_batches if shared else MicroBatches()
        self.graphs: Graphs = Graphs(network, shared.graphs if shared else None)

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
            inputs = [latents, t, conditioning.states]
            if conditioning.pooled is not None and time_ids is not None:
                inputs += [conditioning.pooled, time_ids.expand(len(latents), -1)]
            replays = self.replays and latents.is_cuda
            return self.graphs.run(network, inputs, precision) if replays else network(*inputs)

        return self.micro_batches.run(answer, latents, t, conditioning)

    def _network(self, precision: Precision, latents: Tensor, t: Tensor, states: Tensor, *pooled: Tensor) -> Tensor:
        """The denoiser's output; ``pooled`` are SDXL's pooled states and time ids."""
        added = dict(zip(("text_embeds", "time_ids"), pooled, strict=True)) if pooled else None
        # Replays must not read weights that autocast converted for another pass.
        half, cached = precision == "bfloat16", not self.replays
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=half, cache_enabled=cached):
            output: Tensor = self.network(
                latents, t, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False
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
            self.graphs.forget()
            # Outside the handler, since the error keeps the frames, and with them the tensors, of what failed.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            micro.halve(shortage)
            if generator is not None and state is not None:
                generator.set_state(state)
