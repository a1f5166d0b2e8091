"""Puts on the table what hardening needs: the model, a frozen teacher, and images the base model draws."""

from __future__ import annotations

from collections.abc import Sequence

from safeguard.data.latents import LatentSet, generate
from safeguard.model.diffusion import DiffusionModel
from safeguard.policy.schema import Policy, Subject
from safeguard.progress import Progress
from safeguard.seeds import derive
from safeguard.unlearn.base import Workbench


def draw_set(
    model: DiffusionModel, subjects: Sequence[Subject], count: int, seed: int, title: str, progress: Progress
) -> LatentSet | None:
    """``count`` images spread over all prompts of the subjects; None when there are none."""
    prompts = [prompt for subject in subjects for prompt in subject.prompt_list]
    if not prompts:
        return None
    with progress.task(title, count) as task:
        return generate(model, prompts, count, seed=seed, done=task.update)


def set_up(policy: Policy, model: DiffusionModel, progress: Progress) -> Workbench:
    """The workbench of an already screened policy; ``model`` is the untouched base model and will be edited."""
    count, seed = policy.harden.images, policy.seed
    related = [subject for concept in policy.concepts for subject in concept.related]
    forget = draw_set(model, policy.concepts, count, derive(seed, "forget"), "draw images of the concepts", progress)
    assert forget is not None
    return Workbench(
        policy=policy,
        model=model,
        teacher=model.frozen_copy(),
        concepts=list(policy.concepts),
        forget=forget,
        related=draw_set(model, related, count, derive(seed, "related"), "draw images of related subjects", progress),
        retain=draw_set(
            model, policy.retain, count, derive(seed, "retain"), "draw images of retained subjects", progress
        ),
        seed=seed,
        progress=progress,
    )
