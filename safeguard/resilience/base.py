"""What every resilience objective is: one outer step that leaves gradients behind for the engine's optimiser."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from safeguard.unlearn.base import Unlearner, Workbench

Facts = dict[str, float]
"""Quantities of one outer step for the hardening record: losses, norms, cosines, residuals, guards that fired."""


class Objective(Protocol):
    """One objective that wraps a base unlearner.

    Two things more an objective may have. ``spreads = True`` says that :meth:`accumulate` shares its work with
    ``bench.processes`` and adds up the gradient; without it the main process descends alone and hands the weights round
    at the end. ``state()`` gives tensors, by name, that a checkpoint keeps and a resumed run copies back in place.
    """

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`."""
    unlearner: Unlearner
    """The one whose loss is descended: the engine tells it of every step and keeps its state."""

    def __init__(self, config: Any, bench: Workbench, unlearner: Unlearner) -> None: ...

    @property
    def steps(self) -> int:
        """Outer steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate of the outer loop."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What may change, by name in the model (``unet.…``, ``text_encoder.…``)."""
        ...

    def accumulate(self, step: int) -> Facts:
        """Leave the gradient of outer step ``step`` in ``.grad`` of :meth:`parameters`; weights come back unchanged.

        All randomness is derived from (run seed, step), so a resumed run repeats an uninterrupted one. Weights come
        back when the device runs out of memory, too: the engine then asks again, with smaller micro-batches.
        """
        ...
