"""What the detector is trained and calibrated on: more styles, half-drawn images, and images nobody trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.reference import artwork, batches, calibration, evaluation
from recipes.reference.artwork import Artwork
from recipes.reference.half_drawn import half_drawn
from recipes.reference.relearning import SAMPLER_STEPS
from recipes.reference.vocabulary import NAMES, STYLES, caption
from safeguard.diffusion.model import DiffusionModel
from safeguard.files import atomic_path
from safeguard.io.opening import open_directory

DATA = Path(__file__).parent / "data"
"""Images along relearning and their labels by eye."""
GROUPS = ("weapon",)
"""Groups of names that were relearned and labelled."""
COPIES, OTHERS = 8, 1500
"""Half-drawn images of every drawing of the world, and of other drawings."""
SEED = 1
SAMPLES = 4
"""Images of every name that the base draws for the calibration."""


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def examples(art: Artwork) -> batches.Examples:
    """Artwork as a detector sees it."""
    return batches.examples(to_tensor(art.pixels), art.codepoints, art.styles)


def half_examples(
    model: DiffusionModel, art: Artwork, data: batches.Examples, path: Path, done: Callable[[int], None]
) -> batches.Examples:
    """Half-drawn variants of the artwork, read from ``path`` or made and kept there."""
    if not path.exists():
        made, sources = _make(model, art, done)
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, images=made, rows=sources)
    with np.load(path, allow_pickle=False) as stored:
        images, rows = stored["images"], torch.from_numpy(stored["rows"])
    return batches.Examples(to_tensor(images), data.names[rows], torch.full((len(rows),), -1))


def _make(model: DiffusionModel, art: Artwork, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
    world = np.array(art.rows_of_world())
    others = np.setdiff1d(np.arange(len(art.codepoints)), world)
    picked = np.random.default_rng(SEED).choice(others, min(OTHERS, len(others)), replace=False)
    prompts = [_caption(art, row) for row in world]
    first, of_world = half_drawn(model, art.pixels[world], prompts, copies=COPIES, seed=SEED, done=done)
    second, of_others = half_drawn(model, art.pixels[picked], [""] * len(picked), copies=1, seed=SEED + 1)
    return np.concatenate([first, second]), np.concatenate([world[of_world], picked[of_others]])


def _caption(art: Artwork, row: int) -> str:
    name = next(name for name in NAMES if name.codepoints == art.codepoints[row])
    return caption(name.text, art.styles[row] if art.styles[row] in STYLES else None)


def pictures(model_directory: Path, cache: Path, done: Callable[[int], None]) -> calibration.Pictures:
    """What a detector is calibrated on: artwork by other hands, the base's images, labelled ones along relearning."""
    return calibration.Pictures(
        foreign=examples(artwork.load(cache, list(artwork.HELD_OUT))),
        drawn=evaluation.draw(model_directory, samples=SAMPLES, steps=SAMPLER_STEPS, done=done),
        relearning=[calibration.labelled(DATA, group) for group in GROUPS],
    )


def opened(directory: Path) -> DiffusionModel:
    """The generator, frozen."""
    model = DiffusionModel(open_directory(directory).pipeline)
    model.freeze()
    return model
