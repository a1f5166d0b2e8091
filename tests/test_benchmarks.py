"""The benchmark of an outer step, on a denoiser small enough to count in seconds."""

from __future__ import annotations

import torch

from benchmarks.outer_step import ROUTES, counted, stable_diffusion, timed
from safeguard.model.diffusion import DiffusionModel
from tests.tiny import WIDTH, tiny_unet


def test_routes_are_ordered_as_their_products_say() -> None:
    with torch.device("meta"):
        unet = tiny_unet(sample_size=32)
    costs = dict(counted(unet, size=32, tokens=16, width=WIDTH))
    assert costs["first order"].flops < costs["straightforward"].flops
    assert costs["first order"].flops < costs["moreau"].flops
    assert costs["first order"].peak < costs["moreau"].peak < costs["straightforward"].peak


def test_every_route_is_timed_on_noise() -> None:
    found = list(timed("reference", "cpu", 1, "float32", graphs=False, routes=ROUTES))
    assert [route for route, _, _ in found] == list(ROUTES)
    assert all(seconds > 0 for _, seconds, _ in found)


def test_random_weights_of_stable_diffusion_have_its_shape() -> None:
    model = DiffusionModel(stable_diffusion("meta"))
    assert model.latent_shape == (4, 64, 64)
    assert sum(value.numel() for value in model.unet.parameters()) == 859_520_964
