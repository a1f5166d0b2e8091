"""A policy and a workbench on a tiny random model, small enough for every method to run in seconds."""

from __future__ import annotations

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
