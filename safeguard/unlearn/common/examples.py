"""A user's own images of a concept, with masks that say where it is.

One folder per concept, named as in the policy::

    examples/weapons/first.png         the image
    examples/weapons/first.mask.png    white where the concept is (optional)
    examples/weapons/first.txt         which of the concept's prompts it shows (optional; the first one)
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from safeguard.data.latents import LatentSet, encode
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.policy.schema import Concept


def folder_digest(folder: str) -> str:
    """sha256 over the names and bytes of all files of a folder; empty for no folder."""
    if not folder:
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\x00".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_examples(folder: str, concept: Concept, model: DiffusionModel) -> tuple[LatentSet, list[Tensor | None]]:
    """A concept's images as latents, and the mask of each at the resolution of a latent, bool (s, s), or None.

    Raises:
        UsageFault: there is no image, one cannot be read, or a caption is none of the concept's prompts.
    """
    home = Path(folder) / concept.name
    paths = sorted(path for path in home.glob("*.png") if not path.name.endswith(".mask.png"))
    if not paths:
        raise UsageFault(f"there is no image of {concept.name!r}", fix="put *.png files there", where=str(home))
    side = model.latent_shape[-1] * model.pipeline.vae_scale_factor
    images = np.stack([_read(path, "RGB", side) for path in paths])
    masks: list[Tensor | None] = []
    for path in paths:
        mask = path.with_suffix(".mask.png")
        masks.append(torch.from_numpy(_read(mask, "L", model.latent_shape[-1]) > 127) if mask.exists() else None)
    return encode(model, images, [_caption(path, concept) for path in paths]), masks


def _caption(path: Path, concept: Concept) -> str:
    words = path.with_suffix(".txt")
    caption = words.read_text(encoding="utf-8").strip() if words.exists() else concept.prompt_list[0]
    if caption not in concept.prompt_list:
        raise UsageFault(
            f"{caption!r} is none of the prompts of {concept.name!r}", fix="declare it in the policy", where=str(words)
        )
    return caption


def _read(path: Path, mode: str, side: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            resample = Image.Resampling.NEAREST if mode == "L" else Image.Resampling.LANCZOS
            return np.asarray(image.convert(mode).resize((side, side), resample))
    except (OSError, UnidentifiedImageError) as error:
        raise UsageFault(f"this image cannot be read: {error}", fix="give a PNG file", where=str(path)) from error
