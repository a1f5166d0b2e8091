"""The denoiser's work recorded once and replayed (CUDA graphs).

At one image a GPU waits longer for the launches of a few thousand small kernels, forward and back, than it works. A
graph launches all of them at once. One is recorded per network, shape of its inputs, set of weights that take gradients
and arithmetic; weights may change in place between replays. What is not of that kind runs as it always did: large
batches, which keep a GPU busy by themselves and whose activations a recording would hold, a denoiser with layers added,
inputs that take gradients, and batches that are read by hooks or differentiated twice
(:func:`safeguard.diffusion.execution.whole_batches`).

A replay overwrites what the one before it left. Answers and gradients are therefore copied out, and a backward pass
whose forward pass was overwritten meanwhile replays that first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeguard.diffusion.micro_batches import in_whole_batches

WARMUP = 3
"""Runs before a recording, in which kernels are chosen and workspaces allocated, as torch advises."""
ROWS = 8
"""Larger batches are not recorded."""

Answer = Callable[..., Tensor]


class _Call(torch.nn.Module):
    """An answer as a module, so that its network's weights can be put in by name."""

    def __init__(self, network: torch.nn.Module, answer: Answer) -> None:
        super().__init__()
        self.network, self._answer = network, answer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._answer(*inputs)


@dataclass
class Recording:
    """One recorded pass, with the tensors it reads and writes.

    Attributes:
        inputs: where the forward graph reads.
        output: where it writes.
        grad: gradient of the output, where the backward graph reads.
        gradient: of the weights that take some, end to end, where it writes.
        turn: forward replays so far.
    """

    forward: Any
    inputs: list[Tensor]
    output: Tensor
    backward: Any = None
    grad: Tensor | None = None
    gradient: Tensor | None = None
    turn: int = 0

    def replay(self, inputs: Sequence[Tensor]) -> int:
        """Run the forward graph on other inputs."""
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.forward.replay()
        self.turn += 1
        return self.turn


class _Replay(torch.autograd.Function):
    """A recorded pass as an operator of its weights; its inputs are constants."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, inputs: Sequence[Tensor], *weights: Tensor) -> Tensor:
        ctx.recording, ctx.turn = recording, recording.replay(inputs)
        ctx.inputs = [value.clone() for value in inputs] if weights else []
        ctx.shapes = [value.shape for value in weights]
        return recording.output.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        recording: Recording = ctx.recording
        if recording.turn != ctx.turn:
            ctx.turn = recording.replay(ctx.inputs)
        assert recording.grad is not None and recording.gradient is not None
        recording.grad.copy_(grad)
        recording.backward.replay()
        parts = recording.gradient.clone().split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


class Graphs:
    """The recordings of one denoiser and of its copies.

    Args:
        network: whose parameters, of one type, are the weights.
        shared: recordings of those it is a copy of.
    """

    def __init__(self, network: torch.nn.Module, shared: Graphs | None = None) -> None:
        self._network = network
        self._layers = [id(value) for value in network.parameters()]
        self._owner = object()  # an id would be given again to a network that comes when this one is gone
        self._recordings: dict[object, Recording] = {} if shared is None else shared._recordings

    def forget(self) -> None:
        """Give the memory of all recordings back, those of copies included."""
        self._recordings.clear()

    def run(self, answer: Answer, inputs: Sequence[Tensor], precision: object = None) -> Tensor:
        """The network's answer, by a replay if it can be.

        Args:
            answer: how the network answers; the same function at every call in that precision.
        """
        layers, taking = list(self._network.parameters()), torch.is_grad_enabled()
        if (
            len(inputs[0]) > ROWS
            or in_whole_batches()
            or [id(value) for value in layers] != self._layers
            or (taking and any(value.requires_grad for value in inputs))
        ):
            return answer(*inputs)
        weights: list[Tensor] = [value for value in layers if taking and value.requires_grad]
        shapes, trained = tuple(tuple(value.shape) for value in inputs), tuple(id(value) for value in weights)
        arithmetic = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        key = self._owner, shapes, trained, arithmetic, precision
        with torch.cuda.device(inputs[0].device):
            if key not in self._recordings:
                self._recordings[key] = _record(_Call(self._network, answer), inputs, weights)
            answered: Tensor = _Replay.apply(self._recordings[key], inputs, *weights)  # type: ignore[no-untyped-call]
        return answered


def _record(call: _Call, inputs: Sequence[Tensor], weights: list[Tensor]) -> Recording:
    static = [value.detach().clone() for value in inputs]
    names = {id(value): name for name, value in call.named_parameters()}

    def answer() -> tuple[Tensor, list[Tensor]]:
        # Leaves of the recording's own: those of the weights belong to the stream that first differentiated them.
        leaves = [value.detach().requires_grad_(True) for value in weights]
        named = {names[id(value)]: leaf for value, leaf in zip(weights, leaves, strict=True)}
        output: Tensor = torch.func.functional_call(call, named, tuple(static))
        return output, leaves

    def gradient(output: Tensor, leaves: list[Tensor], grad: Tensor) -> Tensor:
        found = torch.autograd.grad(output, leaves, grad, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in found])

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARMUP):
            output, leaves = answer()
            if weights:
                gradient(output, leaves, torch.zeros_like(output))
            del output, leaves
    torch.cuda.current_stream().wait_stream(aside)
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, stream=aside):
        output, leaves = answer()
    if not weights:
        return Recording(forward, static, output)
    grad = torch.zeros_like(output)
    with torch.cuda.graph(backward, pool=forward.pool(), stream=aside):
        found = gradient(output, leaves, grad)
    return Recording(forward, static, output.detach(), backward, grad, found)
