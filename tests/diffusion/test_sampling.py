"""Guided DDIM runs: the published schedule's numbers, runs by the formula, and runs that stop early."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import ddim_steps, ddim_times, initial_noise, partially_denoised, trajectory
from tests.contexts import abar, answer
from tests.tiny import tiny_pipeline

STEPS = 4


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline())


def test_schedule_of_stable_diffusion(model: DiffusionModel) -> None:
    expected = {0: 0.99915, 1: 0.998296028, 10: 0.990431309, 100: 0.894223478, 500: 0.276332684, 999: 0.004660099}
    for t, value in expected.items():
        assert model.alphas_cumprod[t].item() == pytest.approx(value, rel=1e-4)
        assert abar(t) == pytest.approx(value, rel=1e-6)
    assert (model.alphas_cumprod - 0.5).abs().argmin().item() == 354


def test_fifty_steps_are_the_published_grid(model: DiffusionModel) -> None:
    assert ddim_times(model, 50) == list(range(981, 0, -20))


@torch.no_grad()
def test_a_run_follows_the_formula_and_keeps_what_was_predicted(model: DiffusionModel) -> None:
    noise = initial_noise(model, [3])
    run = list(ddim_steps(model, model.encode_prompts(["an axe"]), noise, steps=STEPS, guidance=3.0))
    x = noise[0]
    for index, point in enumerate(run):
        t = [751, 501, 251, 1][index]
        assert point.t == t and torch.allclose(point.latents[0], x, atol=1e-4)
        empty, full = answer(model, x, t, ""), answer(model, x, t, "an axe")
        assert torch.allclose(point.unconditional[0], empty, atol=1e-4)
        assert torch.allclose(point.conditional[0], full, atol=1e-4)
        eps = empty + 3.0 * (full - empty)
        now, then = abar(t), abar([501, 251, 1, 0][index])
        x = then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps
        assert torch.allclose(point.following[0], x, atol=1e-3)


@pytest.mark.parametrize("after", range(STEPS))
def test_stopping_early_gives_the_run_that_far_and_pays_for_no_more(
    model: DiffusionModel, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, noise = model.encode_prompts(["an axe"]), initial_noise(model, [3])
    path = trajectory(model, prompt, noise, steps=STEPS, guidance=3.0)
    calls: list[int] = []
    predict = DiffusionModel.predict
    monkeypatch.setattr(DiffusionModel, "predict", lambda *args: (calls.append(1), predict(*args))[1])
    found = partially_denoised(model, prompt, noise, after=after, steps=STEPS, guidance=3.0)
    assert torch.equal(found, path[after][0])
    assert path[after][1] == ddim_times(model, STEPS)[after]
    assert len(calls) == after
    assert len(trajectory(model, prompt, noise, steps=STEPS, guidance=3.0, stop=after + 1)) == after + 1
