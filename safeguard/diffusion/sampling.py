"""Seeded sampling: every image has its own noise, so a result depends neither on batch size nor on order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.micro_batches import rows_within
from safeguard.diffusion.model import DiffusionModel

BATCH = 48
"""Images drawn at once,"""
POSITIONS = 2**15
"""and positions of their latents together: eight images of 64 x 64, two of 128 x 128."""


def images_at_once(model: DiffusionModel) -> int:
    """How many images of this model are drawn at once."""
    _, height, width = model.latent_shape
    return rows_within(POSITIONS, height * width, BATCH)


def initial_noise(model: DiffusionModel, seeds: Sequence[int]) -> Tensor:
    """One Gaussian latent per seed, drawn on the CPU."""
    rows = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(model.device)


def predict_pair(model: DiffusionModel, latents: Tensor, t: Tensor, prompt: Conditioning) -> tuple[Tensor, Tensor]:
    """Raw outputs for the empty prompt and for ``prompt``, in one pass; ``t`` is one timestep."""
    times = t.to(model.device).expand(2 * len(latents))
    conditioning = Conditioning.cat([model.empty.repeat(len(latents)), prompt])
    unconditional, conditional = model.predict(torch.cat([latents, latents]), times, conditioning).chunk(2)
    return unconditional, conditional


def guided_prediction(
    model: DiffusionModel, latents: Tensor, t: Tensor, prompt: Conditioning, guidance: float
) -> Tensor:
    """Classifier-free guidance on the raw output: u + guidance (c - u); ``t`` is one timestep."""
    unconditional, conditional = predict_pair(model, latents, t, prompt)
    return unconditional + guidance * (conditional - unconditional)


def solver(config: Any) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) for a model's noise schedule."""
    found: DPMSolverMultistepScheduler = DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
    )
    return found


def ddim(config: Any) -> DDIMScheduler:
    """DDIM for a model's noise schedule."""
    found: DDIMScheduler = DDIMScheduler.from_config(
        config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
    )
    return found


@torch.no_grad()
def sample_latents(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, steps: int, guidance: float, scheduler: Any = None
) -> Tensor:
    """Latents after ``steps`` of DPM-Solver++ (2M) (or the given scheduler) with guidance.

    The grid of timesteps is the solver's own for every model. Left to the directory it would differ between a base
    model, whose settings leave it out, and the hardened one, where saving has written the old scheduler's default.
    """
    scheduler = scheduler or solver(model.pipeline.scheduler.config)

    def work(rows: slice) -> Tensor:
        scheduler.set_timesteps(steps)
        latents: Tensor = noise[rows] * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = guided_prediction(model, latents, t, prompt[rows], guidance)
            latents = scheduler.step(output, t, latents).prev_sample
        return latents

    return torch.cat(model.execution.in_batches("draw", work, len(noise), images_at_once(model)))


class Sampler(Protocol):
    """One way to draw: from text states (n rows) and a seed of each image to latents (n, c, h, w).

    An image depends on its own row and seed alone, and on no other image drawn beside it.
    """

    def __call__(
        self, model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
    ) -> Tensor:
        """The latents; steps and guidance are what the policy says."""


def from_noise(
    model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
) -> Tensor:
    """What everything is drawn with unless somebody asks for another: :func:`sample_latents` of each seed's noise."""
    return sample_latents(model, prompt, initial_noise(model, seeds), steps=steps, guidance=guidance)


@torch.no_grad()
def sample(
    model: DiffusionModel,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    sampler: Sampler = from_noise,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """One image per prompt (or row of text states) and seed: uint8 (n, height, width, 3).

    Args:
        done: hears how many are finished.
    """
    images, size = [], images_at_once(model)
    for start in range(0, len(seeds), size):
        part = slice(start, start + size)
        chosen = prompts[part]
        prompt = chosen if isinstance(chosen, Conditioning) else model.encode_prompts(chosen)
        images.append(model.decode(sampler(model, prompt, seeds[part], steps=steps, guidance=guidance)))
        done(min(start + size, len(seeds)))
    return np.concatenate(images)


class Point(NamedTuple):
    """One step of a guided run.

    Attributes:
        latents: (n, c, h, w) before the step.
        t: the timestep whose noise level they have.
        unconditional, conditional: the network's raw outputs there, each (n, c, h, w).
        following: the latents after the step.
    """

    latents: Tensor
    t: int
    unconditional: Tensor
    conditional: Tensor
    following: Tensor


def _ddim(model: DiffusionModel, steps: int) -> DDIMScheduler:
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


def ddim_times(model: DiffusionModel, steps: int) -> list[int]:
    """The timesteps of a DDIM run, falling: for 50 steps of 1000 they are 981, 961, ..., 1."""
    return [int(t) for t in _ddim(model, steps).timesteps]


@torch.no_grad()
def ddim_steps(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, steps: int, guidance: float, first: int = 0
) -> Iterator[Point]:
    """A deterministic DDIM run, step by step; whoever stops early pays for no more than was seen.

    Args:
        first: the step it begins with, from 0; ``noise`` are then latents that have the steps before behind them.
    """
    scheduler = _ddim(model, steps)
    latents = noise
    for t in scheduler.timesteps[first:]:
        unconditional, conditional = predict_pair(model, latents, t, prompt)
        output = unconditional + guidance * (conditional - unconditional)
        following = scheduler.step(output, t, latents).prev_sample
        yield Point(latents, int(t), unconditional, conditional, following)
        latents = following


def partially_denoised(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, after: int, steps: int, guidance: float
) -> Tensor:
    """Latents after the first ``after`` of ``steps`` steps: their noise level is ``ddim_times``'s entry ``after``."""
    latents = noise
    for point in islice(ddim_steps(model, prompt, noise, steps=steps, guidance=guidance), after):
        latents = point.following
    return latents


def trajectory(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, steps: int, guidance: float, stop: int | None = None
) -> list[tuple[Tensor, int]]:
    """Latents along a deterministic DDIM run, each with the timestep whose noise level it has.

    Entry k is the latent *before* the k-th step, so entry 0 is pure noise at the first timestep; ``stop`` entries
    (default: all ``steps``) are returned.
    """
    run = ddim_steps(model, prompt, noise, steps=steps, guidance=guidance)
    path = [noise, *(point.following for point in islice(run, (stop or steps) - 1))]
    return list(zip(path, ddim_times(model, steps), strict=False))
