"""What every base unlearner is: a config, and either a closed-form edit or a loss to descend.

The engine knows nothing else. ``Workbench`` is all a method may use: the model being edited, a frozen copy of the base
model (the teacher), and latents the base model drew for the concepts, their related subjects and the retained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from safeguard.data.latents import LatentSet
from safeguard.model.diffusion import DiffusionModel
from safeguard.policy.schema import Concept, Policy
from safeguard.progress import Progress


@dataclass
class Workbench:
    """The things on the table during hardening.

    Attributes:
        model: the model being edited.
        teacher: a frozen copy of the base model.
        concepts: what to erase; prompts already passed the content filter.
        forget: images of all concepts, drawn by the base model.
        related: images of the related benign subjects, or None when the policy names none.
        retain: images of the retained subjects, or None.
        seed: run seed; every use derives its own.
        step: descents done so far, over all phases; the engine counts.
    """

    policy: Policy
    model: DiffusionModel
    teacher: DiffusionModel
    concepts: list[Concept]
    forget: LatentSet
    related: LatentSet | None
    retain: LatentSet | None
    seed: int
    progress: Progress
    step: int = 0

    @cached_property
    def preserved(self) -> LatentSet | None:
        """Related and retained images together: what must stay as it is."""
        sets = [part for part in (self.related, self.retain) if part is not None]
        return LatentSet.join(sets) if sets else None


class Unlearner(Protocol):
    """One method of erasing concepts."""

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`."""
    closed_form: ClassVar[bool]
    """True: :meth:`edit` does it all; False: :meth:`loss` is descended by the engine."""

    def __init__(self, config: Any, bench: Workbench) -> None: ...

    @property
    def steps(self) -> int:
        """Optimiser steps of the method when it is used alone; 0 for closed forms."""
        ...

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate when it is used alone."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What may change, by name in the model (``unet.…``, ``text_encoder.…``)."""
        ...

    def edit(self) -> None:
        """Apply the closed form in place (closed forms only)."""
        ...

    def loss(self, generator: torch.Generator) -> Tensor:
        """The erasure loss at the model's present weights (gradient methods only); its descent erases."""
        ...

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """The term that keeps the rest as it is, already weighted; None when there is none."""
        ...
