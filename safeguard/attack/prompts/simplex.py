"""Choices among v words as points of the probability simplex: rows of v shares, none negative, that sum to 1."""

from __future__ import annotations

import torch
from torch import Tensor


def project(points: Tensor) -> Tensor:
    r"""The nearest point of the simplex to each row of (..., v), in closed form.

    It is max(y - tau, 0) with one tau per row. For y in falling order u_1 >= u_2 >= ..., with c_j = u_1 + ... + u_j,
    rho is the largest j at which u_j > (c_j - 1) / j, and tau = (c_rho - 1) / rho (Duchi et al. 2008, figure 1).
    """
    falling = points.sort(dim=-1, descending=True).values
    taus = (falling.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (falling > taus).sum(-1, keepdim=True) - 1  # they are a beginning of the row
    return (points - taus.gather(-1, last)).clamp(min=0)


def draw(points: Tensor, generator: torch.Generator) -> Tensor:
    """One place per row (..., v) -> (...), with the row's shares as probabilities; drawn on the CPU."""
    rows = points.detach().cpu().flatten(0, -2)
    return torch.multinomial(rows, 1, generator=generator).view(points.shape[:-1]).to(points.device)
