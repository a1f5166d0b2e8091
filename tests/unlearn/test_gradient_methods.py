"""ESD and gradient ascent: losses against slow ones, targets, parameter sets; and every method's descent erases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from safeguard.registry import unlearners
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import bounded_ascent
from safeguard.unlearn.esd import ESD, ESDConfig, negative_guidance
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import MIXED, abar, answer, learning, moved_context, seeded, tiny_context


@pytest.fixture(scope="module")
def mixed() -> HardeningContext:
    return moved_context(concepts=MIXED)


def slow_esd_loss(method: ESD, seed: int) -> torch.Tensor:
    """The same loss latent by latent, with the network alone."""
    context, eta = method.context, method.config.eta
    anchors = {"axe in ice": "cup in ice", "axe in mud": "cup in mud", "ink art": "art", "max": "", "old max": ""}
    (latents, t, captions), _ = method._examples(seeded(seed))
    losses = []
    for x, time, caption in zip(latents, t.tolist(), captions, strict=True):
        anchor, concept, empty = (answer(context.teacher, x, time, p) for p in (anchors[caption], caption, ""))
        losses.append((answer(context.model, x, time, caption) - (anchor - eta * (concept - empty))).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("source", ["frozen", "edited"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
@torch.no_grad()
def test_esd_loss_agrees_with_a_slow_one(mixed: HardeningContext, source: str, eta: float) -> None:
    config = ESDConfig(eta=eta, batch_size=4, trajectory_steps=4, pool=5, latents_from=source)  # type: ignore[arg-type]
    method = ESD(config, mixed)
    assert method.loss(seeded(5)).item() == pytest.approx(slow_esd_loss(method, 5).item(), rel=1e-4)


def test_the_code_of_2025_has_the_same_target_at_an_eta_larger_by_one() -> None:
    concept, empty = torch.randn(2, 3, 4, 8, 8, generator=seeded(0))
    for eta in (0.0, 1.0, 3.0):
        code = concept - (eta + 1) * (concept - empty)
        assert torch.allclose(code, negative_guidance(empty, concept, empty, eta), atol=1e-5)
    assert torch.equal(negative_guidance(empty, concept, empty, 0.0), empty), "SDD's target, with a frozen teacher"


def test_esd_asks_the_frozen_model_nothing_while_training(
    mixed: HardeningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ESD(ESDConfig(batch_size=2, trajectory_steps=3, pool=3), mixed)
    method.loss(seeded(0))
    monkeypatch.setattr(mixed.teacher, "predict", lambda *args: pytest.fail("the teacher was asked again"))
    assert method.loss(seeded(1)).item() > 0


def test_esd_timesteps_are_the_levels_of_their_latents(mixed: HardeningContext) -> None:
    method = ESD(ESDConfig(batch_size=2, trajectory_steps=5, pool=7), mixed)
    assert method._pool.times.tolist() == [801, 601, 401, 201, 1]
    assert method._pool.latents.shape[:2] == (5, 7)
    assert method._pool.latents[0].std() == pytest.approx(1.0, abs=0.2)
    (_, t, _), _ = method._examples(seeded(0))
    assert set(t.tolist()) <= {801, 601, 401, 201, 1}


def test_every_prompt_has_a_trajectory_in_esds_pool(mixed: HardeningContext) -> None:
    method = ESD(ESDConfig(batch_size=2, trajectory_steps=2, pool=1), mixed)
    prompts = [prompt for concept in mixed.concepts for prompt in concept.prompt_list]
    assert len(prompts) > 1 and sorted(method._pool.captions) == sorted(prompts)


@torch.no_grad()
def test_ga_loss_agrees_with_a_slow_one(mixed: HardeningContext) -> None:
    method = GradientAscent(GradientAscentConfig(batch_size=4, bound=1.0), mixed)
    generator = seeded(6)
    rows = torch.randint(len(mixed.forget), (4,), generator=generator)
    images = mixed.forget.rows(rows, generator).latents
    t, noise = mixed.model.draw_noise(4, generator)
    losses = []
    for z, eps, time, row in zip(images, noise, t.tolist(), rows, strict=True):
        x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * eps
        losses.append((answer(mixed.model, x, time, mixed.forget.captions[row]) - eps).pow(2).mean().item())
    expected = 0.1 * math.log1p(math.exp((1.0 - sum(losses) / 4) / 0.1))
    assert method.loss(seeded(6)).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("variant", "part"), [("x", "attn2"), ("x-strict", "attn2"), ("self", "attn1")])
def test_esd_variants_choose_their_parameters(variant: str, part: str) -> None:
    names = ESD(ESDConfig(variant=variant), tiny_context()).parameters()  # type: ignore[arg-type]
    assert names and all(part in name for name in names)
    assert not any("attn2" in name for name in ESD(ESDConfig(variant="u"), tiny_context()).parameters())


DESCENDED: dict[str, dict[str, Any]] = {
    "esd": {"variant": "f", "trajectory_steps": 4, "pool": 4, "preserve_weight": 1.0},
    "ga": {"bound": 5.0},
    "sdd": {"parameters": "full", "trajectory_steps": 4, "latents_from": "frozen", "preserve_weight": 1.0},
    "ca": {"parameters": "full"},
    "safegen": {"parameters": "full", "erase_weight": 0.5, "preserve_weight": 0.5},
    "lcfdsd": {"contrast_weight": 0.05},
}


@pytest.mark.parametrize("name", DESCENDED)
def test_descent_lowers_the_erasure_loss(name: str) -> None:
    context = tiny_context()
    registered = unlearners.get(name)
    unlearner = registered(registered.Config.model_validate({"batch_size": 4} | DESCENDED[name]), context)
    values = list(learning(unlearner.parameters()).values())
    with torch.no_grad():  # a random network hardly tells prompts apart, so start away from the target
        for value in values:
            value.mul_(1.2)
    optimizer = torch.optim.Adam(values, lr=1e-3)
    first = unlearner.loss(seeded(1)).item()
    for step in range(30):
        loss = unlearner.loss(seeded(step))
        keep = unlearner.preservation(seeded(step))
        optimizer.zero_grad()
        (loss if keep is None else loss + keep).backward()
        optimizer.step()
    assert unlearner.loss(seeded(1)).item() < first


def test_preservation_is_zero_at_the_base_model() -> None:
    keep = ESD(ESDConfig(preserve_weight=2.0), tiny_context()).preservation(seeded(0))
    assert keep is not None and keep.item() == pytest.approx(0.0, abs=1e-10)
    assert ESD(ESDConfig(), tiny_context()).preservation(seeded(0)) is None


def test_ascent_has_slope_minus_one_below_its_bound_and_none_above() -> None:
    x = torch.tensor([0.1, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bounded_ascent(x, 0.5).sum(), x)
    assert slope[0].item() == pytest.approx(-1.0, abs=1e-3)
    assert slope[1].item() == pytest.approx(0.0, abs=1e-3)
