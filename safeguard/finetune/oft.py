"""OFT (Qiu et al. 2023, arXiv 2306.07280): rotates what a layer is given, block by block, and keeps its weights.

W R x with R of orthogonal blocks on its diagonal, R = (I - Q) (I + Q)^-1 (Cayley) of skew-symmetric Q; Q = 0, so that
R = I before the first step, and the start depends on no seed. The library has a series in place of the inverse by
default, which is orthogonal to a few orders only; here it is the inverse. BOFT, whose rotations are products of sparse
ones, is left out: the library compiles code for it, and without a compiler has this method with a scale beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt

from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import PartsConfig
from safeguard.finetune.peft import PeftFineTuner


class OFTConfig(PartsConfig):
    """Settings of OFT."""

    block_size: PositiveInt = 32
    """Inputs that a block rotates among themselves; where it does not divide a layer's, the nearest that does."""


class OFT(PeftFineTuner):
    """Trains Q."""

    Config: ClassVar = OFTConfig
    config: OFTConfig

    def adapter(self, targets: list[str]) -> Any:
        """Blocks of the declared size."""
        from peft import OFTConfig

        size = self.config.block_size
        return OFTConfig(r=0, oft_block_size=size, use_cayley_neumann=False, target_modules=targets)

    def prepare(self, model: DiffusionModel, parts: Collection[str], seed: int) -> list[torch.nn.Parameter]:
        """Add the rotations; returns their parameters."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # the nearest size, as is said above
            return super().prepare(model, parts, seed)
