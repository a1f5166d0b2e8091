r"""Parameter-space escape: a fine-tune that is paid for leaving the released weights; needs images of the concept.

Hardening looks ahead over the neighbourhood of the weights theta that are released. The attacker descends

    L(theta') = L_FT(theta') - c |theta' - theta|_p,   p = 1 or 2,

over what the method trains: all weights, or an adapter's, theta being where it starts. L_FT is the method's own loss.

Departures: the norm of p = 1 is divided by sqrt(n), n the number of trained weights, and that of p = 2 stays. Either
then pulls with a gradient of norm c, whatever n is; undivided, p = 1 pulls with c sqrt(n), 29,000 c for all weights
of Stable Diffusion, and nothing of L_FT is left once gradients are clipped. At the start itself nothing pulls.
Adaptive attacks are reported with c = 0.5, which breaks the embedded model: after forty steps on all weights at 2e-4
it draws nothing that is asked for (0 of 16 benign images); with c = 0.05 it draws the concept and most other things.

It assumes that a defence has been built around the weights, and knows nothing of this one: it stands for no kind of
attack, neither for those that know the defence nor for a plain fine-tune.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.data.latents import Batch
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import FineTuner
from safeguard.finetune.wrapper import Wrapper


class EscapeConfig(FineTuneConfig):
    """Settings of a fine-tune, and how strongly it is driven away."""

    weight: Annotated[float, Field(ge=0)] = 0.05
    """c: of the distance in the loss; 0 is the plain fine-tune. Reported is 0.5."""
    norm: Literal[1, 2] = 2
    """p: of the norm that measures the distance."""


class Escape(FineTune):
    """Fine-tune away from the released weights, and stop at every checkpoint."""

    Config: ClassVar = EscapeConfig
    config: EscapeConfig

    def covers(self) -> list[str]:
        """No kind."""
        return []

    def descended(self, tuner: FineTuner) -> FineTuner:
        """The method, driven away from where it starts."""
        return Departure(tuner, self.config.weight, self.config.norm)


class Departure(Wrapper):
    """A method whose loss falls with the distance of what it trains from where that was.

    Args:
        tuner: the method.
        weight: c.
        norm: p.
    """

    def __init__(self, tuner: FineTuner, weight: float, norm: Literal[1, 2]) -> None:
        super().__init__(tuner)
        self.weight, self.norm = weight, norm
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def attach(self, model: DiffusionModel, seed: int) -> list[torch.nn.Parameter]:
        """As the method; from where its parameters are now the distance is measured."""
        parameters = self.tuner.attach(model, seed)
        self._pairs = [(value, value.detach().clone()) for value in parameters]
        return parameters

    def detach(self, model: DiffusionModel) -> None:
        """As the method."""
        self._pairs = []
        self.tuner.detach(model)

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """L_FT - c |theta' - theta|_p."""
        return self.tuner.loss(model, batch, generator) - self.weight * self.distance()

    def distance(self) -> Tensor:
        """|theta' - theta|_2, or |theta' - theta|_1 / sqrt(n)."""
        of_each = [torch.linalg.vector_norm(value - start, self.norm) for value, start in self._pairs]
        count = sum(start.numel() for _, start in self._pairs) if self.norm == 1 else 1
        distance: Tensor = torch.linalg.vector_norm(torch.stack(of_each), self.norm) / count**0.5
        return distance
