"""An unlearner as another package might add it, with one defect of the user's choice."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from safeguard.config import MethodConfig
from safeguard.diffusion.parameters import select
from safeguard.harden.checks import tensors
from safeguard.unlearn.base import HardeningContext, Unlearner


class CarelessConfig(MethodConfig):
    """What it does wrong, and to which tensor."""

    tensor: str = ""
    """A tensor that it does not declare and changes all the same; empty: none."""
    value: Literal["nan", "inf", "next"] = "next"
    """What the first number of that tensor becomes; ``next``: the nearest other float."""
    idle: bool = False
    """Change nothing of what it declares."""


class Careless(Unlearner):
    """Adds a little to keys and values of cross-attention, in closed form."""

    Config: ClassVar = CarelessConfig
    closed_form: ClassVar = True

    def __init__(self, config: CarelessConfig, context: HardeningContext) -> None:
        self.config = config
        self.context = context

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return select(self.context.model, "cross-attention-kv")

    @torch.no_grad()
    def edit(self) -> None:
        """Edit what is declared, and what is not."""
        if not self.config.idle:
            for value in self.parameters().values():
                value.add_(1e-3)
        if self.config.tensor:
            first = tensors(self.context.model.pipeline)[self.config.tensor].view(-1)[:1]
            other = torch.nextafter(first, torch.full_like(first, 9.0))
            first.copy_(other if self.config.value == "next" else torch.full_like(first, float(self.config.value)))
