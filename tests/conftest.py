"""Settings of every test process."""

from __future__ import annotations

import gc

import torch


def pytest_configure() -> None:
    """As many processes as cores, so one thread each; what imports made is never garbage and need not be searched."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
