"""SDD: its loss and latents against slow ones, the stopped gradient, the moving average, and whose turn it is."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.sampling import ddim_times
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.sdd import SDD, SDDConfig, released_times
from tests.contexts import (
    MIXED,
    abar,
    answer,
    apart,
    assert_target_is_constant,
    gradients,
    learning,
    moved_context,
    seeded,
)

STEPS = 4


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def sdd(context: HardeningContext, **settings: object) -> SDD:
    return SDD(SDDConfig.model_validate({"batch_size": 3, "trajectory_steps": STEPS} | settings), context)


def slow_latents(method: SDD, captions: list[str], entry: int, seeds: list[int]) -> torch.Tensor:
    """DDIM with guidance, one latent at a time, from the schedule's formula."""
    times = [1000 // STEPS * k + 1 for k in range(STEPS)][::-1]
    found = []
    for caption, seed in zip(captions, seeds, strict=True):
        x = torch.randn(4, 8, 8, generator=seeded(seed))
        for index in range(entry):
            t = times[index]
            empty, full = (answer(method.average.model, x, t, prompt) for prompt in ("", caption))
            eps = empty + method.config.start_guidance * (full - empty)
            now, then = abar(t), abar(times[index + 1]) if index + 1 < STEPS else abar(0)
            x = then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps
        found.append(x)
    return torch.stack(found)


@torch.no_grad()
def test_latents_and_timesteps_agree_with_slow_ones(context: HardeningContext) -> None:
    method = sdd(context)
    for seed in range(4):
        draws = seeded(seed)
        joined, _ = method._captions(draws)
        again = seeded(seed)
        method._captions(again)
        entry = int(torch.randint(STEPS, (), generator=again))
        seeds = torch.randint(2**62, (3,), generator=again).tolist()
        latents, t, _ = method._latents(joined, draws)
        assert torch.allclose(latents, slow_latents(method, joined, entry, seeds), atol=1e-3)
        assert t.tolist() == [751 - 250 * entry] * 3


def slow_loss(method: SDD, seed: int, *, stop: bool = True) -> torch.Tensor:
    generator, model = seeded(seed), method.context.model
    joined, captions = method._captions(generator)
    latents, t, _ = method._latents(joined, generator)
    rows = []
    for x, time, caption in zip(latents, t.tolist(), captions, strict=True):
        target = answer(model, x, time, "")
        rows.append((answer(model, x, time, caption) - (target.detach() if stop else target)).pow(2).mean())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("settings", [{}, {"order": "composite"}, {"variant": "released", "latents_from": "frozen"}])
def test_loss_agrees_with_a_slow_one(context: HardeningContext, settings: dict[str, object]) -> None:
    method = sdd(context, **settings)
    assert method.loss(seeded(5)).item() == pytest.approx(slow_loss(method, 5).item(), rel=1e-4)


def test_a_whole_step_restated(context: HardeningContext) -> None:
    """Prompts, run, timestep and loss from the description alone; none of the method's own parts is asked."""
    method = sdd(context)
    parameters = learning(method.parameters())
    prompts = [["axe in ice", "axe in mud"], ["ink art"], ["max", "old max"]]
    for seed in range(3):
        draws = seeded(seed)
        picked = [[own[int(i)] for i in torch.randint(len(own), (3,), generator=draws)] for own in prompts]
        torch.randint(3, (3,), generator=draws)  # whose turn it is when it is drawn
        entry = int(torch.randint(STEPS, (), generator=draws))
        seeds = torch.randint(2**62, (3,), generator=draws).tolist()
        joined = [", ".join(of_concept[row] for of_concept in picked) for row in range(3)]
        with torch.no_grad():
            latents = slow_latents(method, joined, entry, seeds)
        rows = []
        for row, x in enumerate(latents):
            t = [751, 501, 251, 1][entry]
            with torch.no_grad():
                empty = answer(context.model, x, t, "")
            rows.append((answer(context.model, x, t, picked[row][row]) - empty).pow(2).mean())  # the concepts in turn
        found, expected = method.loss(seeded(seed)), torch.stack(rows).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-3)
        assert apart(gradients(found, parameters), gradients(expected, parameters)) < 1e-2


def test_no_gradient_passes_through_the_answer_without_a_prompt(context: HardeningContext) -> None:
    method = sdd(context)
    assert_target_is_constant(method, slow_loss)


def test_the_average_of_weights_that_rest_is_the_weights_exactly(context: HardeningContext) -> None:
    method = sdd(context, momentum=0.9)
    method.state()
    for _ in range(5):
        method.after_step()
    pairs = zip(method.average.model.unet.parameters(), context.model.unet.parameters(), strict=True)
    assert all(torch.equal(average, value) for average, value in pairs)


def test_the_average_follows_by_its_formula() -> None:
    context = moved_context()
    method = sdd(context, momentum=0.9)
    name, value = next(iter(method.parameters().items()))
    expected = value.detach().clone()
    method.state()
    for step in range(3):
        with torch.no_grad():
            value.add_(step + 1.0)
        method.after_step()
        expected = 0.9 * expected + 0.1 * value.detach()
    assert torch.allclose(method.state()[f"average.{name}"], expected, atol=1e-6)
    trained = value.detach().clone()
    sdd(context, result="edited").edit()
    assert torch.equal(value, trained)
    method.edit()
    assert torch.allclose(value, expected, atol=1e-6)


def test_concepts_take_turns_over_rows_and_steps(context: HardeningContext) -> None:
    method = sdd(context, batch_size=2, latents_from="frozen", result="edited")
    assert set(method.state()) == {"done"}, "no average is kept when nothing uses it"
    of = {prompt: concept.name for concept in context.concepts for prompt in concept.prompt_list}
    turns = []
    for step in range(3):
        joined, captions = method._captions(seeded(step))
        assert all(len(text.split(", ")) == 3 for text in joined)
        assert all(caption in text.split(", ") for caption, text in zip(captions, joined, strict=True))
        turns += [of[caption] for caption in captions]
        method.after_step()
    assert turns == ["axes", "ink", "max"] * 2


def test_timesteps_of_the_released_code(context: HardeningContext) -> None:
    ranges = [released_times(k, 50, 1000) for k in (0, 1, 25, 49)]
    assert ranges == [range(980, 1000), range(960, 980), range(480, 500), range(0, 20)]
    assert all(t in released_times(k, 50, 1000) for k, t in enumerate(ddim_times(context.model, 50)))
    method = sdd(context, variant="released")
    draws = [method._latents(["axe"], seeded(seed)) for seed in range(12)]
    clean = [latents for latents, t, _ in draws if t.item() in released_times(0, STEPS, 1000)]
    assert clean, "one run of twelve should have no steps"
    seed = next(s for s in range(12) if int(torch.randint(STEPS, (), generator=seeded(s))) == 0)
    again = seeded(seed)
    torch.randint(STEPS, (), generator=again)
    start = torch.randint(2**62, (1,), generator=again).tolist()
    with torch.no_grad():
        whole = slow_latents(method, ["axe"], STEPS, start)
    assert any(torch.allclose(whole, latents, atol=1e-3) for latents in clean), "no steps become all of them"
