"""The embedded reference model: a small text-to-image model of emoji, its detector, and the recipe of both."""

from __future__ import annotations

from pathlib import Path

from safeguard.errors import ModelFault

WEIGHTS = Path(__file__).parent / "weights"


def _existing(directory: Path, file: str) -> Path:
    if not (directory / file).is_file():
        raise ModelFault(
            f"the embedded weights are missing ({file})",
            fix="reinstall safeguard, or build them: python -m recipes.reference build",
            where=str(directory),
        )
    return directory


def path() -> Path:
    """Directory of the reference model, in the format of Stable Diffusion.

    Raises:
        ModelFault: the weights are not there.
    """
    return _existing(WEIGHTS / "model", "model_index.json")


def detector_path() -> Path:
    """Directory of the reference detector, in open_clip's format.

    Raises:
        ModelFault: the weights are not there.
    """
    return _existing(WEIGHTS / "detector", "open_clip_model.safetensors")
