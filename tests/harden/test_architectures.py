"""Every unlearner and objective runs on every architecture, and what comes out is certified like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml

import safeguard.probe
from safeguard import api
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.progress import SilentProgress
from safeguard.registry import unlearners
from tests.contexts import tiny_policy
from tests.contracts.runs import tiny
from tests.harden.test_engine import ESD, RESALIGN
from tests.probe.conftest import NONCE, world
from tests.tiny import ARCHITECTURES, save_tiny

__all__ = ["world"]

OTHERS = [name for name in ARCHITECTURES if name != "sd1"]
"""Stable Diffusion 1.x is what all other tests run on."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def hardened(architecture: str, **settings: Any) -> dict[str, Any]:
    """The checks of a hardening of a fresh tiny model."""
    policy = tiny_policy(**settings)
    context = set_up(policy, DiffusionModel(ARCHITECTURES[architecture](0)), SilentProgress())
    return harden(context, architecture).checks["tensors"]


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("unlearner", unlearners.names())
def test_any_unlearner(architecture: str, unlearner: str) -> None:
    found = hardened(architecture, unlearner=tiny(unlearners, unlearner))
    assert found["changed"] > 0
    assert not [name for name in found["unchanged"] if name.startswith("unet.")]


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize(
    "resilience",
    [
        RESALIGN,
        RESALIGN | {"distribution": {"steps": [1], "methods": [{"name": "lora"}]}},
        {"name": "meta-unlearning", "steps": 2, "learning_rate": 1e-3},
    ],
    ids=["resalign-full", "resalign-lora", "meta-unlearning"],
)
def test_any_objective(architecture: str, resilience: dict[str, Any]) -> None:
    found = hardened(architecture, unlearner=ESD | {"steps": 1}, resilience=resilience)
    assert found["changed"] > 0 and found["unchanged"] == []


@pytest.mark.parametrize("architecture", OTHERS)
def test_hardened_then_certified(architecture: str, world: Path) -> None:
    shutil.rmtree(world / "base")
    save_tiny(world / "base", architecture=architecture)
    settings = yaml.safe_load((world / "policy.yaml").read_text())
    settings["harden"]["resilience"] = {"name": "resalign", "steps": 1, "harmful_loss": {"name": "ga"}}
    settings["harden"]["resilience"] |= {"retain_batch": 4, "distribution": {"steps": [1]}}
    (world / "policy.yaml").write_text(yaml.safe_dump(settings))
    result = api.harden(world / "policy.yaml", world / "hardened")
    assert result.record["checks"]["tensors"]["untouched"] > 0
    report = api.certify(result.path, out=world / "run")
    assert report.verdict in ("FAIL", "INCONCLUSIVE") and report.provenance.units_run > 3
    released = safeguard.probe.run("released", result.path, nonce=NONCE)
    attacked = safeguard.probe.run("benign-lora", result.path, nonce=NONCE)
    scores = [
        [row.score for row in unit.rows if (row.subject, row.effort) == ("axes", 0)] for unit in (released, attacked)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 4
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(result.path)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.zeros(1, 4, 8, 8)
    image = pipeline("an axe", latents=noise, num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 16, 16, 3) and np.isfinite(image).all()
