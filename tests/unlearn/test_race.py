"""RACE: the box around the text states, the attack's target, its warm-up, and the optional penalty."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.esd import ESD, ESDConfig
from safeguard.unlearn.race import RACE, RACEConfig
from tests.contexts import MIXED, moved_context, seeded

SMALL = {"batch_size": 3, "trajectory_steps": 4, "pool": 5}


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def race(context: HardeningContext, **settings: object) -> RACE:
    return RACE(RACEConfig.model_validate(SMALL | {"warm_up": 0} | settings), context)


def wanted_error(method: RACE, states: torch.Tensor, seed: int) -> float:
    """How far the edited model is from what the attack wants."""
    drawn, _, wanted = method._attacked_examples(seeded(seed))
    with torch.no_grad():
        return float((method.context.model.unet(drawn.latents, drawn.t, states).sample - wanted).pow(2).mean())


@pytest.mark.parametrize("target", ["initial-noise", "prediction"])
def test_the_attack_stays_in_its_box_and_helps(context: HardeningContext, target: str) -> None:
    method = race(context, attack_target=target, epsilon=0.2)
    better = 0
    for seed in range(6):
        generator = seeded(seed)
        drawn, _, wanted = method._attacked_examples(generator)
        clean = context.model.encode_prompts(drawn.captions).states
        start = (clean + 0.2 * (2 * torch.rand(clean.shape, generator=seeded(0)) - 1)).clamp(clean.min(), clean.max())
        found = method.adversary(drawn, wanted, generator).states
        assert (found - clean).abs().max() <= 0.2 + 1e-6
        for row, free in zip(found, clean, strict=True):
            assert row.min() >= free.min() and row.max() <= free.max()
        better += wanted_error(method, found, seed) < wanted_error(method, start, seed)
    assert better >= 5


def test_the_initial_noise_is_that_of_the_run(context: HardeningContext) -> None:
    method = race(context)
    drawn, _, noise = method._attacked_examples(seeded(3))
    for latents, t, start in zip(drawn.latents, drawn.t, noise, strict=True):
        run = [torch.equal(method._pool.latents[0, i], start) for i in range(5)].index(True)
        step = method._pool.times.tolist().index(int(t))
        assert torch.equal(method._pool.latents[step, run], latents)


def test_the_first_steps_are_esd(context: HardeningContext) -> None:
    method, esd = race(context, warm_up=2), ESD(ESDConfig.model_validate(SMALL), context)
    with torch.no_grad():
        expected = esd.loss(seeded(1))
    for attacked in (False, False, True):
        assert method.attacked == attacked
        assert torch.equal(method.loss(seeded(1)).detach(), expected) != attacked
        method.after_step()
    assert method.state()["done"] == 3


def test_the_loss_is_esds_at_the_attacked_states(context: HardeningContext) -> None:
    method = race(context)
    generator = seeded(5)
    drawn, target, wanted = method._attacked_examples(generator)
    states = method.adversary(drawn, wanted, generator).states
    losses = [
        (context.model.unet(x[None], t[None], state[None]).sample[0] - goal).pow(2).mean()
        for x, t, state, goal in zip(drawn.latents, drawn.t, states, target, strict=True)
    ]
    assert method.loss(seeded(5)).item() == pytest.approx(float(sum(losses)) / 3, rel=1e-4)


def test_lasso_is_the_mean_distance_of_every_tensor(context: HardeningContext) -> None:
    assert race(context).preservation(seeded(0)) is None
    method = race(context, lasso=0.1, variant="f")
    pairs = zip(context.model.unet.parameters(), context.teacher.unet.parameters(), strict=True)
    expected = 0.1 * sum(float((a - b).abs().mean()) for a, b in pairs)
    found = method.preservation(seeded(0))
    assert found is not None and found.item() == pytest.approx(expected, rel=1e-4)


def test_initial_noise_of_the_edited_models_runs_is_refused() -> None:
    with pytest.raises(ValidationError, match="attack_target"):
        RACEConfig(latents_from="edited")
    assert RACEConfig(latents_from="edited", attack_target="prediction")
