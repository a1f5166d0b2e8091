"""What every resilience objective is: one outer step that leaves gradients behind for the engine's optimiser."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from safeguard.resilience.second_order.hvp import Backend
from safeguard.unlearn.base import HardeningContext, Unlearner

Facts = dict[str, float]
"""Quantities of one outer step for the hardening record: losses, norms, cosines, residuals, guards that fired."""


class Objective:
    """One objective that wraps a base unlearner; objectives derive from this class and say what they do."""

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`."""
    unlearner: Unlearner
    """The one whose loss is descended: the engine tells it of every step and keeps its state."""
    steps: int
    """Outer steps."""
    learning_rate: float
    """Adam's learning rate of the outer loop."""
    distributed: ClassVar[bool] = False
    """True: :meth:`compute_gradients` shares its work with ``context.processes`` and adds up the gradient. False: the
    main
    process descends alone and hands the weights round at the end."""

    first_order: ClassVar[str] = "first order"
    """The setting that leaves second order out, for the record's advice."""

    def __init__(self, config: Any, context: HardeningContext, unlearner: Unlearner) -> None:
        """An objective keeps them itself, so that its settings have types; nothing else is at hand."""

    def products(self) -> Backend | None:
        """How it computes Hessian-vector products; none: it needs none."""
        return None

    @property
    def data_digest(self) -> str:
        """Digest of the user's own files that the losses' settings name: with them it determines the result."""
        return self.unlearner.data_digest

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What may change, by name in the model (``unet.…``, ``text_encoder.…``)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it changes")

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What the optimiser steps on, by name: :meth:`parameters`, or values from which :meth:`materialize` makes
        them.

        First asked for when the objective's own phase begins.
        """
        return self.parameters()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps beside the weights; a resumed run copies it back in place."""
        return {}

    def after_step(self) -> None:
        """Hear that the optimiser took a step."""
        self.unlearner.after_step()

    def materialize(self) -> None:
        """Bring :meth:`parameters` in line with :meth:`trained`, which a step or a checkpoint has just changed."""

    def compute_gradients(self, step: int) -> Facts:
        """Leave the gradient of outer step ``step`` in ``.grad`` of :meth:`trained`; weights come back unchanged.

        All randomness is derived from (run seed, step), so a resumed run repeats an uninterrupted one. Weights come
        back when the device runs out of memory, too: the engine then asks again, with smaller micro-batches.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it descends")
