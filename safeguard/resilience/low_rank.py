"""Low-rank updates as what an objective trains, in place of the weights themselves.

Every matrix W of a group becomes W + B A, with A (rank, inputs) ~ N(0, 1/rank^2) and B (outputs, rank) = 0, as in
:mod:`safeguard.finetune.lora`; a convolution counts as the matrix (outputs, rest), and vectors stay as they are. The
model always holds the sum, so losses, simulated fine-tunes of any method and the result see plain weights, and there is
nothing to merge. A gradient G with respect to W is one with respect to A and B by the chain rule: G A' and B' G.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeguard.errors import UsageFault
from safeguard.resilience.second_order.solvers import Vector


class LowRank:
    """Low-rank updates of some weights, which are nothing yet.

    Args:
        weights: what would be trained; those with one dimension are left out.
        rank: of every update.
        seed: of A.

    Attributes:
        weights: the matrices.
        parameters: A and B by name, ``….to_q.weight.lora_B`` (outputs, rank) and ``….lora_A`` (rank, inputs).
    """

    def __init__(self, weights: dict[str, torch.nn.Parameter], rank: int, seed: int) -> None:
        self.weights = matrices(weights)
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.weights.items():
            shape = weight.flatten(1).shape
            a = torch.randn(rank, shape[1], generator=generator).to(weight) / rank
            self.parameters[f"{name}.lora_B"] = torch.nn.Parameter(weight.new_zeros(shape[0], rank))
            self.parameters[f"{name}.lora_A"] = torch.nn.Parameter(a)

    @torch.no_grad()
    def write(self) -> None:
        """Put the sums into the model."""
        for name, weight in self.weights.items():
            update = self.parameters[f"{name}.lora_B"] @ self.parameters[f"{name}.lora_A"]
            weight.copy_(self._start[name] + update.view_as(weight))

    @torch.no_grad()
    def pull_back(self, grads: Sequence[Tensor]) -> Vector:
        """Gradients of the weights, in their order, as gradients of :attr:`parameters`, in theirs."""
        found = []
        for name, grad in zip(self.weights, grads, strict=True):
            grad = grad.flatten(1)
            found.append(grad @ self.parameters[f"{name}.lora_A"].mT)
            found.append(self.parameters[f"{name}.lora_B"].mT @ grad)
        return found


def matrices(weights: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """Those of the weights that have low-rank updates.

    Raises:
        UsageFault: none.
    """
    found = {name: weight for name, weight in weights.items() if weight.dim() > 1}
    if not found:
        raise UsageFault("low-rank updates need matrices, and the group has none", fix="parameters: attention")
    return found
