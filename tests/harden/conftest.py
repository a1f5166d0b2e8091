"""A tiny base model and a policy on disk, as a user has them before hardening."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.detect.clip_checkpoint import save_clip
from tests.tiny import save_tiny


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``base/``, ``clip/``, ``cache/`` (ours) and ``policy.yaml``, two steps of ESD."""
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "base")
    save_clip(tmp_path / "clip")
    write_policy(tmp_path)
    return tmp_path


def write_policy(desk: Path, **changes: Any) -> Path:
    """Write the policy, with some of its settings changed."""
    detector = {"name": "clip", "checkpoint": str(desk / "clip"), "vocabulary": ["axe", "hammer", "cat"]}
    policy = {
        "version": 1,
        "name": "tiny",
        "model": str(desk / "base"),
        "concepts": [
            {
                "name": "axes",
                "kind": "object",
                "prompts": ["an axe", "a big axe"],
                "labels": ["axe"],
                "related": [{"name": "hammers", "prompts": ["a hammer"], "labels": ["hammer"]}],
                "detector": detector,
            }
        ],
        "retain": [{"name": "cats", "prompts": ["a cat"], "labels": ["cat"]}],
        "harden": {
            "unlearner": {"name": "esd", "steps": 2, "trajectory_steps": 2, "pool": 2, "learning_rate": 1e-2},
            "images": 3,
        },
        "requirements": [{"probe": "*", "max_rate": 0.5}],
    }
    (desk / "policy.yaml").write_text(yaml.safe_dump(policy | changes))
    return desk / "policy.yaml"
