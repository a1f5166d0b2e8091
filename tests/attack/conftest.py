"""A tiny model with its base at hand, and nothing that judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safeguard.attack.target import Base, Target
from safeguard.data.fine_tuning import DataSets
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import Concept
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline


class Made:
    """Targets of a pipeline, and the base's components that were read for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: list[str] = []

    def target(self, pipeline: Any, base: Any, *differing: str) -> Target:
        policy, model = tiny_policy(), DiffusionModel(pipeline)

        def component(name: str) -> Any:
            self.read.append(name)
            return getattr(base, name)

        def score(images: np.ndarray, concept: Concept) -> np.ndarray:
            return np.zeros(len(images))

        data = DataSets(policy, "base", "code", self.folder, model.device, 3)
        return Target("hardened", model, "digest", policy, data, score, 0, Base(frozenset(differing), component))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def base() -> Any:
    return tiny_pipeline(0)
