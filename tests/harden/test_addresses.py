"""A phase's checkpoint is found again by everything that determines it, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from tests.contexts import tiny_policy
from tests.harden.test_engine import ESD, META
from tests.tiny import tiny_pipeline

OBJECTIVE = META | {"steps": 1, "harmful_loss": {"name": "ga"}, "prompts": [None]}
ATTRIBUTES = [{"prompt": "a cat", "labels": ["cat"]}, {"prompt": "a car", "labels": ["car"]}]
MEASURING: dict[str, dict[str, Any]] = {
    "rece": {"name": "rece", "select": 1},
    "uce": {"name": "uce", "debias": {"attributes": ATTRIBUTES, "rounds": 1, "images": 1}},
}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "detector": ({"detector": {"name": "clip", "threshold": 0.25}}, {}),
    "vocabulary": ({"detector": {"name": "clip", "vocabulary": ["axe", "cat", "car", "cup"]}}, {}),
    "labels": ({"labels": ["axe", "dagger"]}, {}),
    "sampler steps": ({}, {"sampler_steps": 3}),
    "guidance": ({}, {"guidance": 2.0}),
}
"""What is measured with: changes of the concept, and of how certification samples."""


def run(unlearner: dict[str, Any], concept: dict[str, Any], certification: dict[str, Any]) -> None:
    """Harden the tiny model under a policy with these changes."""
    policy = tiny_policy(unlearner=unlearner, resilience=OBJECTIVE, images=1).model_dump()
    policy["concepts"][0] |= concept
    policy["certification"] |= {"sampler_steps": 2} | certification
    context = set_up(Policy.model_validate(policy), DiffusionModel(tiny_pipeline(0)), SilentProgress())
    harden(context, "base")


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path))
    monkeypatch.setattr("safeguard.harden.checks.STEPS", 1)


def phases(cache: Path) -> set[Path]:
    """The checkpoints that there are."""
    return set((cache / "phases").glob("*.safetensors"))


@pytest.mark.parametrize("method", MEASURING)
def test_what_a_method_measures_with_is_in_the_address(tmp_path: Path, method: str) -> None:
    run(MEASURING[method], {}, {})
    run(MEASURING[method], {}, {})
    assert len(phases(tmp_path)) == 1, "the same again is found again"
    for number, change in enumerate(CHANGES, start=2):
        run(MEASURING[method], *CHANGES[change])
        assert len(phases(tmp_path)) == number, f"with another {change} its weights may be others"


@pytest.mark.parametrize("unlearner", [ESD | {"steps": 1}, {"name": "rece"}], ids=["esd", "rece"])
def test_a_method_that_measures_nothing_is_found_again_whatever_judges_later(
    tmp_path: Path, unlearner: dict[str, Any]
) -> None:
    run(unlearner, {}, {})
    kept = phases(tmp_path)
    for change in ("detector", "labels", "guidance"):
        run(unlearner, *CHANGES[change])
    assert phases(tmp_path) == kept


def test_other_code_has_other_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run({"name": "uce"}, {}, {})
    monkeypatch.setattr("safeguard.harden.engine.code_digest", lambda without: "of another version")
    run({"name": "uce"}, {}, {})
    assert len(phases(tmp_path)) == 2
