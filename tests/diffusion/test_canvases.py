"""Drawing on a canvas: its two ends, the formula of a masked run, and independence of everything drawn beside it."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.canvases import OnCanvas, centre
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import from_noise, initial_noise, solver
from tests.contexts import abar
from tests.tiny import tiny_pipeline

STEPS, GUIDANCE = 4, 3.0
SEEDS = [11, 12, 13, 14]
PROMPTS = ["an axe", "a cat", "an axe", "a hat"]


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0, prediction_type=request.param))


@pytest.fixture
def canvases(model: DiffusionModel) -> torch.Tensor:
    return torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def drawn(
    model: DiffusionModel, sampler: OnCanvas, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS
) -> torch.Tensor:
    return sampler(model, model.encode_prompts(prompts), seeds, steps=STEPS, guidance=GUIDANCE)


def test_at_strength_one_the_canvas_is_forgotten(model: DiffusionModel, canvases: torch.Tensor) -> None:
    plain = from_noise(model, model.encode_prompts(PROMPTS), SEEDS, steps=STEPS, guidance=GUIDANCE)
    assert torch.equal(drawn(model, OnCanvas(canvases)), plain)
    assert torch.equal(drawn(model, OnCanvas(canvases, mask=centre(8, 8, 1.0))), plain)


def test_a_mask_of_nothing_gives_the_canvas_back(model: DiffusionModel, canvases: torch.Tensor) -> None:
    sampler = OnCanvas(canvases, mask=torch.zeros(8, 8, dtype=torch.bool), seed=3)
    assert torch.equal(drawn(model, sampler), canvases[sampler.chosen(SEEDS)])


def test_outside_the_mask_lies_the_canvas_in_the_end(model: DiffusionModel, canvases: torch.Tensor) -> None:
    mask = centre(8, 8, 0.5)
    sampler = OnCanvas(canvases, mask=mask)
    found, under = drawn(model, sampler), canvases[sampler.chosen(SEEDS)]
    assert torch.equal(found[..., ~mask], under[..., ~mask])
    assert not torch.isclose(found[..., mask], under[..., mask]).any(dim=-1).all()


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_a_run_from_the_middle_by_hand(model: DiffusionModel, canvases: torch.Tensor, masked: bool) -> None:
    mask = centre(8, 8, 0.5) if masked else None
    sampler = OnCanvas(canvases, 0.5, mask)
    (canvas,), (noise,) = canvases[sampler.chosen([7])], initial_noise(model, [7])
    scheduler = solver(model.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    times = [int(t) for t in scheduler.timesteps]
    assert times == [999, 749, 500, 250]
    scheduler.set_begin_index(2)
    x = abar(500) ** 0.5 * canvas + (1 - abar(500)) ** 0.5 * noise
    outside = [abar(250) ** 0.5 * canvas + (1 - abar(250)) ** 0.5 * noise, canvas]
    for t, known in zip(times[2:], outside, strict=True):
        output = _guided(model, x, t)
        x = scheduler.step(output, torch.tensor(t), x).prev_sample
        x = x if mask is None else torch.where(mask, x, known)
    found = drawn(model, sampler, ["an axe"], [7])
    torch.testing.assert_close(found[0], x, rtol=1e-3, atol=1e-3)


def _guided(model: DiffusionModel, x: torch.Tensor, t: int) -> torch.Tensor:
    empty, full = (
        model.predict(x[None], torch.tensor([t]), model.encode_prompts([prompt]))[0] for prompt in ("", "an axe")
    )
    return empty + GUIDANCE * (full - empty)


def test_little_strength_changes_little(model: DiffusionModel, canvases: torch.Tensor) -> None:
    """Of a run that begins nearer to the canvas, less is noise."""
    under = canvases[OnCanvas(canvases).chosen(SEEDS)]
    apart = [float((drawn(model, OnCanvas(canvases, share)) - under).pow(2).mean()) for share in (0.01, 0.25, 0.75)]
    assert apart[0] == apart[1] < apart[2], "at least one step is run"


def test_an_image_depends_on_its_own_seed_alone(model: DiffusionModel, canvases: torch.Tensor) -> None:
    sampler = OnCanvas(canvases, 0.5, centre(8, 8, 0.5), seed=1)
    together = drawn(model, sampler)
    backwards = drawn(model, sampler, PROMPTS[::-1], SEEDS[::-1]).flip(0)
    alone = torch.cat([drawn(model, sampler, [p], [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    torch.testing.assert_close(together, backwards, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_seed_of_an_image_chooses_among_all_canvases(canvases: torch.Tensor) -> None:
    chosen = OnCanvas(canvases, seed=1).chosen(range(60))
    assert set(chosen) == {0, 1, 2} and chosen != OnCanvas(canvases, seed=2).chosen(range(60))
    assert OnCanvas(canvases, seed=1).chosen([5, 4]) == [chosen[5], chosen[4]]


@pytest.mark.parametrize(("share", "side"), [(0.5, 4), (0.75, 6), (1.0, 8), (0.01, 1)])
def test_the_hole_is_a_square_in_the_middle(share: float, side: int) -> None:
    mask = centre(8, 8, share)
    assert mask.sum() == side**2
    rows = mask.any(dim=1).nonzero().flatten().tolist()
    assert rows == list(range((8 - side) // 2, (8 - side) // 2 + side))
    assert torch.equal(mask, mask.T)
