"""The deterministic matrices all closed forms are checked on."""

from __future__ import annotations

import torch


def sines(rows: int, columns: int, a: float, b: float) -> torch.Tensor:
    """sin(a k + b) for k = 1, 2, ... in row-major order."""
    index = torch.arange(1, rows * columns + 1, dtype=torch.float64).view(rows, columns)
    return torch.sin(a * index + b)


W = sines(3, 4, 1, 0)
E = sines(4, 2, 0.7, 0.3)
G = sines(4, 2, 0.9, -0.2)
P = sines(4, 3, 1.3, 0.1)


def close(found: torch.Tensor, expected: list[float] | list[list[float]]) -> bool:
    """To the nine digits the values are given with."""
    return torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
