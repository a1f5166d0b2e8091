"""The benchmarks, on models and numbers small enough for seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import attacks, drawing
from benchmarks.outer_step import ROUTES, SETTINGS, counted, profile_of, stable_diffusion, timed
from safeguard.diffusion.model import DiffusionModel
from tests.probe.conftest import world
from tests.tiny import WIDTH, tiny_unet

__all__ = ["world"]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_routes_are_ordered_as_their_products_say(setting: str) -> None:
    with torch.device("meta"):
        unet = tiny_unet(sample_size=32)
    costs = counted(unet, setting, size=32, tokens=16, width=WIDTH)
    assert costs["first order"].flops < costs["straightforward"].flops
    assert costs["first order"].flops < costs["moreau"].flops
    assert costs["first order"].peak <= costs["moreau"].peak < costs["straightforward"].peak
    assert (costs["first order"].peak < costs["moreau"].peak) == (setting == "published"), "or the kept images decide"


@pytest.mark.slow
def test_what_is_counted_grows_with_the_images_of_all_passes() -> None:
    with torch.device("meta"):
        unet = tiny_unet(sample_size=32)
    default, published = (counted(unet, setting, size=32, tokens=16, width=WIDTH) for setting in SETTINGS)
    passes = 1 * (16 * 4 + 4 * 3 * 8) + 3 * 8 + 24, 3 * (16 * 1 + 1 * 1) + 1 + 4
    teacher = 24, 4
    forward = default["first order"].flops / (3 * passes[0] + teacher[0])  # a gradient is about three passes
    assert published["first order"].flops / (3 * passes[1] + teacher[1]) == pytest.approx(forward, rel=0.02)
    solves = [costs["moreau"].flops - costs["first order"].flops for costs in (default, published)]
    assert solves[0] / solves[1] == pytest.approx(4 * 4 / 3, rel=0.02), "four points of four images, three of one"


@pytest.mark.slow
def test_every_route_is_timed_on_noise() -> None:
    found = list(timed("reference", "published", "cpu", 1, "float32", graphs=False, routes=ROUTES))
    assert [route for route, _ in found] == list(ROUTES)
    assert all(timing.seconds > 0 and not timing.profile for _, timing in found)


def test_a_profile_names_operators() -> None:
    values = torch.randn(4, 4)
    assert "aten::mm" in profile_of(lambda: values @ values, "cpu")


def test_random_weights_of_stable_diffusion_have_its_shape() -> None:
    model = DiffusionModel(stable_diffusion("meta"))
    assert model.latent_shape == (4, 64, 64)
    assert sum(value.numel() for value in model.unet.parameters()) == 859_520_964


def test_drawing_is_timed_on_the_same_images() -> None:
    found = dict(drawing.measured("cpu", 3, 2))
    assert list(found) == ["safeguard", "diffusers, one batch", "diffusers, one by one"]
    assert {speed.images for speed in found.values()} == {3}
    assert all(speed.seconds > 0 and speed.rate == 3 / speed.seconds for speed in found.values())


def test_all_routes_draw_the_same() -> None:
    drawn: list[np.ndarray] = []

    def judged(images: np.ndarray) -> np.ndarray:
        drawn.extend(images)
        return np.zeros(len(images))

    for route in drawing.routes("cpu", 4).values():
        assert len(route(["a dagger emoji", "a cat emoji"], [0, 1], judged)) == 2
    ours, batch, single = np.array(drawn).astype(int).reshape(3, 2, *drawn[0].shape)
    assert np.abs(batch - ours).max() <= 2 and np.abs(single - ours).max() <= 2


def test_a_table_of_attacks_says_where_the_highest_rate_was(tmp_path: Path, world: Path) -> None:
    """Of a tiny model, from its own policy; a second run reads what the first has found."""
    declared = attacks.examined(str(world / "policy.yaml"), str(world / "suite.yaml"), 4)
    first = attacks.looked_at(tmp_path, "tiny", world / "model", "malicious-full", declared)
    assert attacks.looked_at(tmp_path, "tiny", world / "absent", "malicious-full", declared) == first
    rates = {effort: first.count("axes", effort)[0] for effort in (1, 2)}
    found = attacks.row("tiny", first, declared, limit=0.2)
    assert found["worst"] == f"{max(rates.values())}/4" and found["released"] == f"{first.count('axes', 0)[0]}/4"
    assert found["where"] == f"after {max(rates, key=lambda effort: rates[effort])} fine-tuning step" + (
        "s" if rates[2] > rates[1] else ""
    )
    assert next(iter(attacks.table([found]))).startswith("| probe | model | released | worst |")
