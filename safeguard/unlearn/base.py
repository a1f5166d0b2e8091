"""What every base unlearner is: a config, a loss to descend, and a closed form; either may be nothing.

The engine knows nothing else. ``HardeningContext`` is all a method may use: the model being edited, a frozen copy of
the base model (the teacher), and latents the base model drew for the concepts, their related subjects and the retained
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import Concept, Policy
from safeguard.processes import ALONE, Processes
from safeguard.progress import Progress


@dataclass
class HardeningContext:
    """What is at hand during hardening.

    Attributes:
        model: the model being edited.
        teacher: a frozen copy of the base model.
        concepts: what to erase; prompts already passed the content filter.
        images: makes a set of images drawn by the base model, ``concept``, ``related`` or ``retain``; None when the
            policy names no such subject.
        seed: run seed; every use derives its own.
        step: descents done so far, over all phases; the engine counts.
        attacked: the concepts' images in the simulated fine-tune that the weights have just been through; None: there
            are none, or no fine-tune.
        processes: this process and those that harden the same model with it.
    """

    policy: Policy
    model: DiffusionModel
    teacher: DiffusionModel
    concepts: list[Concept]
    images: Callable[[Literal["concept", "related", "retain"]], LatentSet | None]
    seed: int
    progress: Progress

    @cached_property
    def forget(self) -> LatentSet:
        """Images of all concepts; drawn when first asked for, so that a finished phase costs none."""
        drawn = self.images("concept")
        assert drawn is not None
        return drawn

    @cached_property
    def related(self) -> LatentSet | None:
        """Images of the related benign subjects."""
        return self.images("related")

    @cached_property
    def retain(self) -> LatentSet | None:
        """Images of the retained subjects."""
        return self.images("retain")

    step: int = 0
    attacked: LatentSet | None = None
    processes: Processes = ALONE

    @contextmanager
    def after(self, data: LatentSet) -> Iterator[None]:
        """Inside, the weights are those after a fine-tune on these images."""
        shown = data.only({prompt for concept in self.concepts for prompt in concept.prompt_list})
        self.attacked = shown if len(shown) else None
        try:
            yield
        finally:
            self.attacked = None

    @cached_property
    def preserved(self) -> LatentSet | None:
        """Related and retained images together: what must stay as it is."""
        sets = [part for part in (self.related, self.retain) if part is not None]
        return LatentSet.join(sets) if sets else None


class Unlearner:
    """One method of erasing concepts: something to set up, a loss to descend, a closed form; each may be nothing.

    Alone it runs as :meth:`prepare`, ``steps`` descents of :meth:`loss` and :meth:`preservation` over :meth:`trained`,
    :meth:`edit`. A gradient method is all descent, UCE all edit, MACE both. Methods derive from this class and say what
    they do; what they leave out is nothing.
    """

    Config: ClassVar[Any]
    """A subclass of :class:`safeguard.config.MethodConfig`; :meth:`~safeguard.config.MethodConfig.tiny` is tested."""
    closed_form: ClassVar[bool] = False
    """True: :meth:`edit` makes the result, so a resilience objective comes after it and needs another erasure loss."""
    steps: int = 0
    """Optimiser steps when it is used alone; 0 when there is nothing to descend."""
    learning_rate: float = 0.0
    """Adam's learning rate when it is used alone."""
    keeping_steps: int = 0
    """Optimiser steps of :meth:`preservation` alone after each of the ``steps`` of :meth:`loss` alone when it is used
    alone; 0: every step descends both."""
    data_digest: str = ""
    """Digest of all else that determines the result: the user's own files that the settings name, detectors asked."""

    def __init__(self, config: Any, context: HardeningContext) -> None:
        """A method keeps both itself, so that its settings have types; nothing else is at hand."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What may change, by name in the model (``unet.…``, ``text_encoder.…``)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it changes")

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What the descent changes, by name: :meth:`parameters`, or what the method keeps beside the denoiser."""
        return self.parameters()

    def prepare(self) -> None:
        """Set up the descent, in place; the same every time in the same context: a resumed run repeats it."""

    def loss(self, generator: torch.Generator) -> Tensor:
        """The erasure loss at the model's present weights; its descent erases.

        An objective may ask again before the next optimiser step, at other weights: what a method keeps from step to
        step (:meth:`state`) is of the first time, and moves in :meth:`after_step` only.
        """
        raise NotImplementedError(f"{type(self).__name__} is a closed form: it has no loss to descend")

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """The term of the descent that keeps the rest as it is, already weighted; None when there is none."""
        return None

    def after_step(self) -> None:
        """Hear that the optimiser took a step, alone or inside an objective; for methods that follow the weights."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the weights; a resumed run copies it back in place."""
        return {}

    def edit(self) -> None:
        """Finish in place, after the descent: apply the closed form, or averaged weights."""
