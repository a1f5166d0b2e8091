"""An exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.diffusion.model import DiffusionModel


class MovingAverage:
    """A frozen copy whose weights follow those of another model: average <- m average + (1 - m) weights.

    Args:
        model: the model to follow; the average starts at its present weights.
        momentum: m. The average looks back over about 1 / (1 - m) updates.

    Attributes:
        model: the average as a model.
    """

    def __init__(self, model: DiffusionModel, momentum: float) -> None:
        self.model = model.frozen_copy()
        self.momentum = momentum
        self._followed: list[Tensor] = list(model.named_parameters().values())
        self._average: list[Tensor] = list(self.model.named_parameters().values())

    @torch.no_grad()
    def update(self) -> None:
        """Follow one step; weights that did not move keep their exact value."""
        torch._foreach_lerp_(self._average, self._followed, 1 - self.momentum)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name, to be kept and restored in place."""
        return dict(self.model.named_parameters())
