"""What the tests of prompt attacks share: a target that draws its own images, and rows counted at the denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import AttackMethod
from safeguard.registry import attacks
from tests.attack.conftest import Made
from tests.contracts.runs import tiny


def drawn(made: Made, pipeline: Any, base: Any, *differing: str) -> Target:
    """A target whose model draws the training images."""
    target = made.target(pipeline, base, *differing)
    target.data.base = target.model
    return target


def attack(name: str, probe: str = "probe", **settings: Any) -> Attack[Any]:
    """With its tiny settings, and these."""
    return attacks.make(AttackMethod.model_validate(tiny(attacks, name) | settings), probe)


def run(made: Attack[Any], target: Target, seed: int = 0) -> list[Attempt]:
    """All attempts."""
    return list(made.run(target, seed))


@contextmanager
def counted(model: DiffusionModel) -> Iterator[list[int]]:
    """Inside, how many rows each call of the denoiser has."""
    rows: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


def read_ids(model: DiffusionModel, text: str) -> list[int]:
    """The tokens of a text, without the special ones."""
    found: list[int] = model.pipeline.tokenizer(text, add_special_tokens=False).input_ids
    return found


def losses(model: DiffusionModel, points: Any, texts: list[str]) -> torch.Tensor:
    """Of a prompt for each image, row by row: mean of (eps_theta(z_t, t, T(prompt)) - eps)^2."""
    found = []
    for row, text in enumerate(texts):
        states = model.encode_anew([text])
        parts = [
            model.predict_noise(points.latents[row, j][None], points.t[row, j][None], states) - points.wanted[row, j]
            for j in range(points.t.shape[1])
        ]
        found.append(torch.stack([part.pow(2).mean() for part in parts]).mean())
    return torch.stack(found)
