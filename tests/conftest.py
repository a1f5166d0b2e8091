"""Settings of every test process."""

from __future__ import annotations

import gc

import torch


def pytest_configure() -> None:
    """One thread for each of as many processes as there are cores, and few searches for garbage.

    Tests make graphs of millions of objects and drop them without cycles; searching them took most of the time.
    """
    torch.set_num_threads(1)
    gc.set_threshold(200_000, 50, 1000)


def pytest_collection_finish() -> None:
    """What the imports made is never garbage."""
    gc.collect()
    gc.freeze()
