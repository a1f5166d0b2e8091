"""What a denoiser is told about the image it is to make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told: text states, and for SDXL the pooled states beside them.

    Attributes:
        states: (n, tokens, width).
        pooled: (n, pooled width), or None.
    """

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> Conditioning:
        return Conditioning(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def repeat(self, count: int) -> Conditioning:
        """The single row of this conditioning, ``count`` times."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Conditioning(self.states.expand(count, -1, -1), pooled)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all parts, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)
