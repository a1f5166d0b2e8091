"""Seeded sampling: every image has its own noise, so a result depends neither on batch size nor on order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from safeguard.model.diffusion import Conditioning, DiffusionModel

BATCH = 48
"""Images drawn at once."""


def initial_noise(model: DiffusionModel, seeds: Sequence[int]) -> Tensor:
    """One Gaussian latent per seed, drawn on the CPU."""
    rows = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(model.device)


def guided(model: DiffusionModel, latents: Tensor, t: Tensor, prompt: Conditioning, guidance: float) -> Tensor:
    """Classifier-free guidance on the raw output: u + guidance (c - u); ``t`` is one timestep."""
    times = t.to(model.device).expand(2 * len(latents))
    both = model.predict(
        torch.cat([latents, latents]), times, Conditioning.cat([model.empty.repeat(len(latents)), prompt])
    )
    unconditional, conditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def sample_latents(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, steps: int, guidance: float, scheduler: Any = None
) -> Tensor:
    """Latents after ``steps`` of DPM-Solver++ (2M) (or the given scheduler) with guidance."""
    scheduler = scheduler or DPMSolverMultistepScheduler.from_config(
        model.pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(steps)
    latents: Tensor = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        latents = scheduler.step(guided(model, latents, t, prompt, guidance), t, latents).prev_sample
    return latents


@torch.no_grad()
def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """One image per (prompt, seed): uint8 (n, height, width, 3); ``done`` hears how many are finished."""
    images = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        prompt = model.encode_prompts(prompts[part])
        latents = sample_latents(model, prompt, initial_noise(model, seeds[part]), steps=steps, guidance=guidance)
        images.append(model.decode(latents))
        done(min(start + BATCH, len(prompts)))
    return np.concatenate(images)


@torch.no_grad()
def trajectory(
    model: DiffusionModel, prompt: Conditioning, noise: Tensor, *, steps: int, guidance: float, stop: int | None = None
) -> list[tuple[Tensor, int]]:
    """Latents along a deterministic DDIM run, each with the timestep whose noise level it has.

    Entry k is the latent *before* the k-th step, so entry 0 is pure noise at the first timestep; ``stop`` entries
    (default: all ``steps``) are returned.
    """
    scheduler = DDIMScheduler.from_config(
        model.pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    latents, path = noise, []
    for t in scheduler.timesteps[: stop or steps]:
        path.append((latents, int(t)))
        if len(path) < (stop or steps):
            latents = scheduler.step(guided(model, latents, t, prompt, guidance), t, latents).prev_sample
    return path
