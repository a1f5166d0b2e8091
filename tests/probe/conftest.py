"""A tiny model to attack: base model, detector, suite and policy on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Worker
from safeguard.probe.units import Units
from safeguard.progress import SilentProgress
from tests.probe.worlds import make_world

NONCE = "00" * 16
"""Of examinations that are to be the same every time."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``base/``, ``model/`` (its denoiser is another), ``clip/``, ``suite.yaml`` and ``policy.yaml``."""
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))
    return make_world(tmp_path)


@pytest.fixture
def campaign(world: Path) -> Campaign:
    """The changed model under the policy."""
    return Campaign.open(world / "model", policy=world / "policy.yaml", device="cpu", nonce=NONCE)


@pytest.fixture
def worker(world: Path, campaign: Campaign) -> Worker:
    """A worker of that campaign; what it finds is kept in ``run/``, and not in the cache."""
    return Worker(campaign, Units(world / "run", shared=False), SilentProgress())
