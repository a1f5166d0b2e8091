"""The variance-exploding SDE in one dimension, and networks that predict its noise, many side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

LAMBDA = 25.0
FIRST, LAST = 1e-5, 1.0
"""Times between which noise is added."""

Noise = Callable[[Tensor, Tensor], Tensor]
"""``(x, ln sigma) -> E[z | x]``, each (M, N): a row per model."""


def sigma(t: float) -> float:
    """Standard deviation of ``x_t - x_0`` of ``dx = g(t) dw``, ``g(t) = lambda^t``: the root of the integral of
    ``g^2``."""
    return math.sqrt(math.expm1(2 * t * math.log(LAMBDA)) / (2 * math.log(LAMBDA)))


LOW, HIGH = math.log(sigma(FIRST)), math.log(sigma(LAST))
"""Range of ``ln sigma``: 0.0032 to 9.85."""


class Networks(nn.Module):
    """``M`` perceptrons of one shape that know nothing of each other, and are trained together because it is faster.

    The network predicts the noise of ``x = x_0 + sigma z``; the score is ``-noise / sigma``.

    Args:
        models: M.
        dice: of the first weights.
        width: of the two hidden layers.
    """

    def __init__(self, models: int, dice: torch.Generator, width: int = 64) -> None:
        super().__init__()
        sizes = [(2, width), (width, width), (width, 1)]
        self.weights = nn.ParameterList(
            torch.randn((models, inner, outer), generator=dice) / math.sqrt(inner) for inner, outer in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(models, 1, outer) for _, outer in sizes)

    def chosen(self, models: Tensor) -> Networks:
        """Copies of the models of these numbers, in their order."""
        copied = copy.deepcopy(self)
        for parameter in copied.parameters():
            parameter.data = parameter.data[models].clone()
        return copied

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:
        """Predicted noise (M, N)."""
        scaled = x / (1 + (2 * log_sigma).exp()).sqrt()
        h = torch.stack([scaled, (2 * log_sigma - LOW - HIGH) / (HIGH - LOW)], dim=-1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, nn.functional.silu(h) if i else h, weight)
        return h.squeeze(-1)
