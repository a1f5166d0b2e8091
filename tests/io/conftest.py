"""One tiny model directory, built once and copied for every test that may harm it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny import save_tiny, tiny_sdxl_pipeline


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion directory; do not write to it."""
    return save_tiny(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture(scope="session")
def pristine_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL directory; do not write to it."""
    directory = tmp_path_factory.mktemp("pristine") / "sdxl"
    tiny_sdxl_pipeline().save_pretrained(directory, safe_serialization=True)
    return directory


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Stable Diffusion directory."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))
