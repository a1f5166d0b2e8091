"""One optimiser step, the same in every training of the recipe."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def descend(
    loss: torch.Tensor,
    values: Iterable[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Step down the gradient of ``loss``, clipped to norm 1, and move the learning rate on."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(values, 1.0)
    optimizer.step()
    schedule.step()
