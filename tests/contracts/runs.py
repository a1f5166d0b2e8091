"""Hardening runs for the contracts of unlearners and objectives, and one that is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from safeguard.config import Source
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.policy.schema import Policy
from safeguard.progress import Progress, SilentProgress, Task
from safeguard.registry import Registry
from safeguard.unlearn.base import HardeningContext
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline


def tiny(registry: Registry[Any], name: str) -> dict[str, Any]:
    """A method with its tiny settings, as a policy writes it."""
    settings: dict[str, Any] = registry.get(name).Config.tiny().model_dump(mode="json", exclude_unset=True)
    return {"name": name, **settings}


def context(progress: Progress | None = None, **harden: Any) -> HardeningContext:
    """A fresh hardening context; ``harden`` is that section of the policy, ``concepts`` those of another one."""
    concepts = harden.pop("concepts", None)
    policy = tiny_policy(**harden)
    if concepts is not None:
        policy = Policy.model_validate(policy.model_dump() | {"concepts": concepts})
    fresh = set_up(policy, DiffusionModel(tiny_pipeline(0)), progress or SilentProgress())
    subjects = f"{policy.harden.images} of {policy.model_dump_json(include={'concepts', 'retain'})}"
    return replace(fresh, images=lambda name: _drawn(subjects, name, fresh.images))


_DRAWN: dict[tuple[str, str], LatentSet | None] = {}


def _drawn(subjects: str, name: Source, draw: Callable[[Source], LatentSet | None]) -> LatentSet | None:
    """What the base model draws of the same subjects is the same every time; it is drawn once."""
    if (subjects, name) not in _DRAWN:
        _DRAWN[subjects, name] = draw(name)
    return _DRAWN[subjects, name]


def weights(context: HardeningContext) -> dict[str, torch.Tensor]:
    """Copies of all weights, by name."""
    return {name: value.detach().clone() for name, value in context.model.named_parameters().items()}


class Killed(SilentProgress):
    """Ends the process's work in the middle of one task, as Ctrl-C would.

    Args:
        title: of the task.
        after: items of it.
    """

    def __init__(self, title: str, after: int) -> None:
        self.title, self.after = title, after

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _Killer(self.after if title == self.title else total)


class _Killer:
    def __init__(self, after: int) -> None:
        self._after = after

    def update(self, done: int, **facts: float | str) -> None:
        if done > self._after:
            raise KeyboardInterrupt
