"""Puts on the table what hardening needs: the model, a frozen teacher, and images the base model draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import Policy, Subject
from safeguard.processes import ALONE, Processes
from safeguard.progress import Progress
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext


def draw_set(
    model: DiffusionModel, subjects: Sequence[Subject], count: int, seed: int, title: str, progress: Progress
) -> LatentSet | None:
    """``count`` images spread over all prompts of the subjects; None when there are none."""
    prompts = [prompt for subject in subjects for prompt in subject.prompt_list]
    if not prompts:
        return None
    with progress.task(title, count) as task:
        return generate(model, prompts, count, seed=seed, done=task.update)


def set_up(policy: Policy, model: DiffusionModel, progress: Progress, processes: Processes = ALONE) -> HardeningContext:
    """The hardening context of an already screened policy; ``model`` is the untouched base model and will be edited."""
    model.execution.precision = policy.harden.precision
    teacher, count = model.frozen_copy(), policy.harden.images
    sets: dict[str, tuple[str, str, Sequence[Subject]]] = {
        "concept": ("forget", "draw images of the concepts", policy.concepts),
        "related": ("related", "draw images of related subjects", policy.related),
        "retain": ("retain", "draw images of retained subjects", policy.retain),
    }

    def images(name: Literal["concept", "related", "retain"]) -> LatentSet | None:
        purpose, title, subjects = sets[name]
        return draw_set(teacher, subjects, count, derive(policy.seed, purpose), title, progress)

    return HardeningContext(
        policy=policy,
        model=model,
        teacher=teacher,
        concepts=list(policy.concepts),
        images=images,
        seed=policy.seed,
        progress=progress,
        processes=processes,
    )
