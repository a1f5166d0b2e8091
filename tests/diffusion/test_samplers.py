"""Other ways to draw, against diffusers' schedulers, the formulas written out, and plain drawing at their ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.samplers import (
    SCHEDULERS,
    NoisyDDIM,
    Relay,
    Scheduled,
    SchedulerName,
    levels,
    step_deviation,
)
from safeguard.diffusion.sampling import Sampler, ddim, from_noise, initial_noise, sample_latents
from safeguard.seeds import derive
from tests.contexts import abar
from tests.tiny import ARCHITECTURES, tiny_pipeline

STEPS, GUIDANCE = 4, 3.0
SEEDS = [11, 12, 13]
PROMPTS = ["an axe", "a cat", "an axe"]
ETAS = (1.0, 1.05, 1.17, 1.34, 1.51, 1.68, 1.85)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0, prediction_type=request.param))


def drawn(
    model: DiffusionModel, sampler: Sampler, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS
) -> torch.Tensor:
    return sampler(model, model.encode_prompts(prompts), seeds, steps=STEPS, guidance=GUIDANCE)


def guided(model: DiffusionModel, x: torch.Tensor, t: Any, prompt: Conditioning, scale: float) -> torch.Tensor:
    """Classifier-free guidance, one pass after the other."""
    times = torch.full((len(x),), int(t))
    empty = model.predict(x, times, model.encode_prompts([""] * len(x)))
    return empty + scale * (model.predict(x, times, prompt) - empty)


def test_without_noise_it_is_the_deterministic_ddim_of_diffusers(model: DiffusionModel) -> None:
    prompt, noise = model.encode_prompts(PROMPTS), initial_noise(model, SEEDS)
    scheduler = ddim(model.pipeline.scheduler.config)
    plain = sample_latents(model, prompt, noise, steps=STEPS, guidance=GUIDANCE, scheduler=scheduler)
    torch.testing.assert_close(drawn(model, NoisyDDIM(0.0)), plain)
    torch.testing.assert_close(drawn(model, Scheduled("ddim")), plain)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_the_usual_noise_it_is_the_stochastic_ddim_of_diffusers(model: DiffusionModel, eta: float) -> None:
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *model.latent_shape, generator=generator)
    for t, now, then in levels(model, STEPS):
        output, z = (torch.randn(x.shape, generator=generator) for _ in range(2))
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=z)
        signal, noise = now**0.5, (1 - now) ** 0.5
        by_noise = model.prediction_type == "epsilon"
        eps = output if by_noise else signal * output + noise * x
        x0 = (x - noise * eps) / signal
        torch.testing.assert_close(NoisyDDIM(eta).step(x0, eps, z, now, then), theirs.prev_sample)


def test_a_whole_run_is_that_of_diffusers_given_the_same_noise(model: DiffusionModel) -> None:
    found = drawn(model, NoisyDDIM(1.0, seed=5))
    assert torch.equal(found, drawn(model, NoisyDDIM(1.0, seed=5)))
    assert not torch.allclose(found, drawn(model, NoisyDDIM(1.0, seed=6)))
    torch.testing.assert_close(found, _by_diffusers(model, 5, 1.0))


def _by_diffusers(model: DiffusionModel, seed: int, eta: float) -> torch.Tensor:
    prompt, x = model.encode_prompts(PROMPTS), initial_noise(model, SEEDS)
    generators = [torch.Generator().manual_seed(derive(seed, "step noise", each)) for each in SEEDS]
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        output = guided(model, x, t, prompt, GUIDANCE)
        x = scheduler.step(output, t, x, eta=eta, generator=generators).prev_sample
    return x


def test_steps_without_a_root_on_stable_diffusions_schedule() -> None:
    """In 50 steps: none with the usual noise, then the last one, three, four."""
    model = DiffusionModel(tiny_pipeline(0))

    def negative(eta: float) -> list[int]:
        return [
            index
            for index, (_, now, then) in enumerate(levels(model, 50))
            if 1 - then - step_deviation(now, then, eta) ** 2 < 0
        ]

    assert [len(negative(eta)) for eta in ETAS] == [0, 1, 1, 1, 3, 4, 4]
    assert negative(1.85) == [46, 47, 48, 49], "they are the last ones"


def test_levels_are_those_of_the_published_schedule() -> None:
    found = levels(DiffusionModel(tiny_pipeline(0)), 50)
    assert [int(t) for t, _, _ in found] == list(range(981, 0, -20))
    for t, now, then in found:
        assert now == pytest.approx(abar(int(t)), rel=1e-4)
        assert then == pytest.approx(abar(max(0, int(t) - 20)), rel=1e-4)


def test_where_there_is_no_root_the_absolute_value_is_taken_and_nothing_is_nan(model: DiffusionModel) -> None:
    *_, (t, now, then) = levels(model, 50)
    x0, eps, z = (torch.randn(1, *model.latent_shape) for _ in range(3))
    sigma = 1.85 * ((1 - then) / (1 - now)) ** 0.5 * (1 - now / then) ** 0.5
    assert int(t) == 1 and 1 - then - sigma**2 < 0
    expected = then**0.5 * x0 + (sigma**2 - (1 - then)) ** 0.5 * eps + 1.04 * sigma * z
    torch.testing.assert_close(NoisyDDIM(1.85, 1.04).step(x0, eps, z, now, then), expected)
    assert drawn(model, NoisyDDIM(1.85, 1.04, steps=10)).isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_by_name_draws_what_diffusers_draws(name: SchedulerName, model: DiffusionModel) -> None:
    config = model.pipeline.scheduler.config
    theirs: Any = {
        "dpm-solver++": lambda: diffusers.DPMSolverMultistepScheduler.from_config(config, timestep_spacing="linspace"),
        "ddim": lambda: diffusers.DDIMScheduler.from_config(config, timestep_spacing="leading"),
        "ddpm": lambda: diffusers.DDPMScheduler.from_config(config, timestep_spacing="trailing"),
        "euler-ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler.from_config(
            config, timestep_spacing="trailing"
        ),
    }[name]()
    theirs.set_timesteps(STEPS)
    prompt = model.encode_prompts(PROMPTS)
    generators = [torch.Generator().manual_seed(derive(9, "step noise", each)) for each in SEEDS]
    x = initial_noise(model, SEEDS) * theirs.init_noise_sigma
    for t in theirs.timesteps:
        output = guided(model, theirs.scale_model_input(x, t), t, prompt, GUIDANCE)
        x = theirs.step(output, t, x, generator=generators).prev_sample
    torch.testing.assert_close(drawn(model, Scheduled(name, seed=9)), x, rtol=1e-3, atol=1e-3)


def test_steps_and_guidance_of_ones_own_are_used(model: DiffusionModel) -> None:
    prompt = model.encode_prompts(PROMPTS)
    plain = from_noise(model, prompt, SEEDS, steps=6, guidance=1.5)
    torch.testing.assert_close(drawn(model, Scheduled(steps=6, guidance=1.5)), plain)
    torch.testing.assert_close(
        drawn(model, Scheduled()), from_noise(model, prompt, SEEDS, steps=STEPS, guidance=GUIDANCE)
    )
    assert not torch.allclose(drawn(model, Scheduled(guidance=0.0)), drawn(model, Scheduled()))


@pytest.mark.parametrize(
    "sampler",
    [NoisyDDIM(1.85, 1.04, seed=1), Scheduled("ddpm", seed=1), Scheduled("euler-ancestral", seed=1)],
    ids=["noisy", "ddpm", "euler-ancestral"],
)
def test_an_image_depends_on_its_own_seed_alone(sampler: Sampler, model: DiffusionModel) -> None:
    together = drawn(model, sampler)
    backwards = drawn(model, sampler, PROMPTS[::-1], SEEDS[::-1]).flip(0)
    alone = torch.cat([drawn(model, sampler, [p], [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    torch.testing.assert_close(together, backwards, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sampler", [NoisyDDIM(1.85), Scheduled("euler-ancestral")], ids=["noisy", "euler-ancestral"])
def test_every_architecture_is_drawn_from(architecture: str, sampler: Sampler) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    found = drawn(model, sampler)
    assert found.shape == (3, *model.latent_shape) and found.isfinite().all()


def test_a_relay_is_one_run_of_two_denoisers(model: DiffusionModel) -> None:
    """By hand: the first steps with the one, the rest with the other, at the timesteps of one run."""
    other = DiffusionModel(tiny_pipeline(1, prediction_type=model.prediction_type))
    prompt, x = model.encode_prompts(PROMPTS), initial_noise(model, SEEDS)
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    for index, t in enumerate(scheduler.timesteps):
        network = (other if index < 3 else model).unet
        times = torch.full((len(x),), int(t))
        empty = network(x, times, model.encode_prompts([""] * len(x)).states).sample
        output = empty + GUIDANCE * (network(x, times, prompt.states).sample - empty)
        x = scheduler.step(output, t, x).prev_sample

    @contextmanager
    def swapped(known: DiffusionModel) -> Iterator[None]:
        own, known.execution.network = known.execution.network, other.unet
        try:
            yield
        finally:
            known.execution.network = own

    torch.testing.assert_close(drawn(model, Relay(3, swapped)), x, rtol=1e-3, atol=1e-3)
