"""Partially denoised latents of prompts, each with the timestep whose noise level it has: what ESD and SDD train on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import ddim_steps, ddim_times, initial_noise, partially_denoised
from safeguard.seeds import derive, spread


class Drawn(NamedTuple):
    """Latents on guided runs.

    Attributes:
        latents: (n, c, h, w).
        t: their timesteps (n,).
        captions: the prompts they were drawn for.
    """

    latents: Tensor
    t: Tensor
    captions: list[str]


class Places(NamedTuple):
    """Rows of a pool: which step of which run, each int64 (n,)."""

    steps: Tensor
    runs: Tensor


class TrajectoryPool:
    """(x_t, t, prompt) triples along guided DDIM runs of the frozen base model, and what it predicted there.

    ESD and its relatives train on partially denoised latents of the concept's prompts. Sampling them from a frozen
    model lets whole trajectories be kept, which costs one run per prompt instead of half a run per training step; the
    latent always meets exactly the timestep whose noise level it has. The frozen model's outputs at these latents are
    by-products of guidance, so targets made of them cost no forward pass while training.

    Attributes:
        latents: (steps, runs, c, h, w).
        times: (steps,).
        captions: one per run.
        unconditional, conditional: raw outputs for the empty prompt and for the run's own, shaped like ``latents``.
    """

    def __init__(
        self, model: DiffusionModel, prompts: list[str], *, size: int, steps: int, guidance: float, seed: int
    ) -> None:
        self.model = model
        self.captions = spread(prompts, size, derive(seed, "captions"))
        noise = initial_noise(model, [derive(seed, "trajectory", index) for index in range(size)])
        run = list(ddim_steps(model, model.encode_prompts(self.captions), noise, steps=steps, guidance=guidance))
        self.latents = torch.stack([point.latents for point in run])
        self.times = torch.tensor([point.t for point in run], device=model.device)
        self.unconditional = torch.stack([point.unconditional for point in run])
        self.conditional = torch.stack([point.conditional for point in run])

    @torch.no_grad()
    def predictions(self, prompts: list[str]) -> Tensor:
        """Raw outputs at all latents for other prompts, one per run; shaped like ``latents``."""
        if not any(prompts):
            return self.unconditional
        conditioning = self.model.encode_prompts(prompts)
        rows = zip(self.latents, self.times, strict=True)
        return torch.stack([self.model.predict(latents, t.expand(len(latents)), conditioning) for latents, t in rows])

    def pick(self, count: int, generator: torch.Generator) -> Places:
        """Uniform places, with replacement."""
        steps = torch.randint(len(self.times), (count,), generator=generator)
        runs = torch.randint(len(self.captions), (count,), generator=generator)
        return Places(steps.to(self.times.device), runs.to(self.times.device))

    def at(self, places: Places) -> Drawn:
        """What lies there."""
        captions = [self.captions[run] for run in places.runs.tolist()]
        return Drawn(self.latents[places], self.times[places.steps], captions)

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Latents at uniform places."""
        return self.at(self.pick(count, generator))


def draw_fresh(
    model: DiffusionModel, captions: list[str], generator: torch.Generator, *, steps: int, guidance: float
) -> Drawn:
    """Latents of new guided runs of ``model``, one per caption, all stopped at one random step."""
    after = int(torch.randint(steps, (), generator=generator))
    noise = draw_initial(model, len(captions), generator)
    prompt = model.encode_prompts(captions)
    latents = partially_denoised(model, prompt, noise, after=after, steps=steps, guidance=guidance)
    t = torch.full((len(captions),), ddim_times(model, steps)[after], device=model.device)
    return Drawn(latents, t, captions)


def draw_initial(model: DiffusionModel, count: int, generator: torch.Generator) -> Tensor:
    """Initial noise of ``count`` runs."""
    return initial_noise(model, torch.randint(2**62, (count,), generator=generator).tolist())


def draw_captions(prompts: list[str], count: int, generator: torch.Generator) -> list[str]:
    """``count`` prompts, drawn uniformly with replacement."""
    return [prompts[i] for i in torch.randint(len(prompts), (count,), generator=generator).tolist()]
