"""The benchmark of an outer step, on a denoiser small enough to count in seconds."""

from __future__ import annotations

import torch

from benchmarks.outer_step import counted
from tests.tiny import WIDTH, tiny_unet


def test_routes_are_ordered_as_their_products_say() -> None:
    with torch.device("meta"):
        unet = tiny_unet(sample_size=32)
    costs = dict(counted(unet, size=32, tokens=16, width=WIDTH))
    assert costs["first order"].flops < costs["straightforward"].flops
    assert costs["first order"].flops < costs["moreau"].flops
    assert costs["first order"].peak < costs["moreau"].peak < costs["straightforward"].peak
