"""L_harm of an objective: the erasure loss of an unlearner, or of several, added.

One loss sees one way back. Gradient ascent makes a concept's images unlikely under their prompts, which a model that
draws the one thing it was taught for every other satisfies; the losses that erase prompts (ESD, concept ablation) ask
what a prompt is drawn as, whatever images there are of it. Their sum asks for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from safeguard.errors import UsageFault
from safeguard.policy.schema import UnlearnerMethod
from safeguard.registry import unlearners
from safeguard.unlearn.base import HardeningContext, Unlearner

HarmfulLoss = UnlearnerMethod | Annotated[list[UnlearnerMethod], Field(min_length=1)]
"""A gradient unlearner with its settings (``ga``, ``esd``, ``ca``, …), or a list of them."""


class JointLoss(Unlearner):
    """The sum of several unlearners' erasure losses; what else they do alone is left out."""

    def __init__(self, parts: Sequence[Unlearner]) -> None:
        self.parts = parts
        self.data_digest = " ".join(part.data_digest for part in parts).strip()

    def loss(self, generator: torch.Generator) -> Tensor:
        """The losses one after another, each on draws of its own."""
        return torch.stack([part.loss(generator) for part in self.parts]).sum()

    def after_step(self) -> None:
        """All hear of it."""
        for part in self.parts:
            part.after_step()

    def state(self) -> dict[str, Tensor]:
        """Theirs, by place."""
        return {
            f"{place}.{name}": value for place, part in enumerate(self.parts) for name, value in part.state().items()
        }


def harmful(named: HarmfulLoss, context: HardeningContext) -> Unlearner:
    """The unlearner whose ``loss`` is L_harm.

    Raises:
        UsageFault: one of them is a closed form, or adds layers to the model.
    """
    if isinstance(named, list):
        parts = [_part(method, context, f"harmful_loss[{place}]") for place, method in enumerate(named)]
        return parts[0] if len(parts) == 1 else JointLoss(parts)
    return _part(named, context, "harmful_loss")


def _part(method: UnlearnerMethod, context: HardeningContext, field: str) -> Unlearner:
    if unlearners.get(method.name).closed_form:
        raise UsageFault(f"{field}: {method.name} is a closed form, without a loss", fix="name ga, esd or ca")
    layers = context.model.named_parameters().keys()
    built = unlearners.make(method, context)
    if context.model.named_parameters().keys() != layers:
        raise UsageFault(f"{field}: {method.name} adds layers to the model", fix="name it as the unlearner instead")
    return built
