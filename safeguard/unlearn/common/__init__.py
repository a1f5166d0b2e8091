"""What gradient-based unlearners share: trajectories of noisy latents, and distillation on what must stay."""

from __future__ import annotations

import torch
from torch import Tensor

from safeguard.data.latents import LatentSet, spread
from safeguard.model.diffusion import DiffusionModel
from safeguard.model.sampling import initial_noise, trajectory
from safeguard.seeds import derive
from safeguard.unlearn.base import Workbench


class TrajectoryPool:
    """(x_t, t, prompt) triples along guided DDIM runs of the frozen base model.

    ESD and its relatives train on partially denoised latents of the concept's prompts. Sampling them from a frozen
    model lets whole trajectories be kept, which costs one run per prompt instead of half a run per training step; the
    latent always meets exactly the timestep whose noise level it has.
    """

    def __init__(
        self, model: DiffusionModel, prompts: list[str], *, size: int, steps: int, guidance: float, seed: int
    ) -> None:
        captions = spread(prompts, size, derive(seed, "captions"))
        conditioning = model.encode_prompts(captions)
        seeds = [derive(seed, "trajectory", index) for index in range(size)]
        path = trajectory(model, conditioning, initial_noise(model, seeds), steps=steps, guidance=guidance)
        self.captions = captions
        self.latents = torch.stack([latents for latents, _ in path])
        self.times = torch.tensor([t for _, t in path], device=model.device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
        """Latents (count, c, h, w), their timesteps (count,), and the prompts they were drawn for."""
        when = torch.randint(len(self.times), (count,), generator=generator)
        which = torch.randint(len(self.captions), (count,), generator=generator)
        at, rows = when.to(self.times.device), which.to(self.times.device)
        return self.latents[at, rows], self.times[at], [self.captions[i] for i in which.tolist()]


def distillation(bench: Workbench, data: LatentSet, size: int, generator: torch.Generator) -> Tensor:
    """MSE between the edited model's and the base model's noise prediction on noised images of ``data``."""
    batch = data.batch(size, generator)
    t, noise = bench.model.draw_noise(size, generator)
    noisy = bench.model.add_noise(batch.latents, noise, t)
    with torch.no_grad():
        target = bench.teacher.predict(noisy, t, batch.conditioning)
    return (bench.model.predict(noisy, t, bench.model.encode_prompts(batch.captions)) - target).pow(2).mean()


def preservation(bench: Workbench, weight: float, size: int, generator: torch.Generator) -> Tensor | None:
    """Weighted distillation on related and retained images; None when there are none, or no weight."""
    data = bench.preserved
    return weight * distillation(bench, data, size, generator) if data is not None and weight else None


def erase_prompts(bench: Workbench) -> list[str]:
    """All prompts of all concepts."""
    return [prompt for concept in bench.concepts for prompt in concept.prompt_list]
