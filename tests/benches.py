"""A policy and a workbench on a tiny random model, small enough for every method to run in seconds."""

from __future__ import annotations

import torch

from safeguard.data.latents import LatentSet
from safeguard.harden.workbench import set_up
from safeguard.model.diffusion import DiffusionModel
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from safeguard.unlearn.base import Workbench
from tests.tiny import tiny_pipeline


def tiny_policy(**harden: object) -> Policy:
    """Erase axes from a tiny model; keep hammers and cats."""
    return Policy.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": "tiny",
            "concepts": [
                {
                    "name": "axes",
                    "kind": "object",
                    "prompts": ["an axe", "a big axe"],
                    "anchor": "a thing",
                    "labels": ["axe"],
                    "related": [{"name": "hammers", "prompts": ["a hammer"], "labels": ["hammer"]}],
                    "detector": {"name": "clip"},
                }
            ],
            "retain": [{"name": "cats", "prompts": ["a cat"], "labels": ["cat"]}],
            "harden": {"unlearner": {"name": "esd"}, "images": 4, **harden},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )


def tiny_bench() -> Workbench:
    """A fresh workbench."""
    return set_up(tiny_policy(), DiffusionModel(tiny_pipeline(0)), SilentProgress())


def mixed_concepts(count: int) -> list[dict[str, object]]:
    """``count`` named objects and one style, whose anchors leave what the prompts draw otherwise."""
    detector = {"name": "clip"}
    objects: list[dict[str, object]] = [
        {"name": f"object-{i:02d}", "kind": "object", "prompts": [f"a {i:02d}"], "anchor": "a z", "detector": detector}
        for i in range(count)
    ]
    style = {"template": "{name} in x", "fill": {"name": ["cat", "hat"]}}
    return [*objects, {"name": "x", "kind": "style", "prompts": style, "anchor": "{name}", "detector": detector}]


def drawn_bench(unlearner: dict[str, object], concepts: list[dict[str, object]]) -> Workbench:
    """A workbench for these concepts that keeps hats; one random latent per prompt, so that nothing is sampled."""
    policy = Policy.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": "tiny",
            "concepts": concepts,
            "retain": [{"name": "hats", "prompts": ["hat"]}],
            "harden": {"unlearner": unlearner},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )
    model = DiffusionModel(tiny_pipeline(0))
    captions = [prompt for concept in policy.concepts for prompt in concept.prompt_list]
    mean = torch.randn(len(captions), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return Workbench(
        policy=policy,
        model=model,
        teacher=model.frozen_copy(),
        concepts=list(policy.concepts),
        forget=LatentSet(mean, torch.zeros_like(mean), model.encode_prompts(captions), captions, "drawn"),
        related=None,
        retain=None,
        seed=0,
        progress=SilentProgress(),
    )
