"""Settings of every test process."""

from __future__ import annotations

import gc

import pytest
import torch


def pytest_configure() -> None:
    """One thread for each of as many processes as there are cores, and few searches for garbage.

    Tests make graphs of millions of objects and drop them without cycles; searching them took most of the time.
    """
    torch.set_num_threads(1)
    gc.set_threshold(200_000, 50, 1000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What the imports made is never garbage."""
    gc.collect()
    gc.freeze()
