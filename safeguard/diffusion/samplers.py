"""Ways to draw beside the usual one: another scheduler, enlarged noise, two denoisers in turn.

Each is a :class:`safeguard.diffusion.sampling.Sampler`. An image starts from the noise of its seed, as it does where it
is drawn as usual; what is drawn at random on the way has a generator of its own, of the sampler's seed and the image's,
so neither order nor batch matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import ddim, guided_prediction, images_at_once, initial_noise, solver
from safeguard.seeds import derive

SchedulerName = Literal["dpm-solver++", "ddim", "ddpm", "euler-ancestral"]


def _ddpm(config: Any) -> Any:
    return DDPMScheduler.from_config(
        config, variance_type="fixed_small", clip_sample=False, timestep_spacing="trailing"
    )


def _euler_ancestral(config: Any) -> Any:
    return EulerAncestralDiscreteScheduler.from_config(config, timestep_spacing="trailing")


SCHEDULERS: dict[SchedulerName, Callable[[Any], Any]] = {
    "dpm-solver++": solver,
    "ddim": ddim,
    "ddpm": _ddpm,
    "euler-ancestral": _euler_ancestral,
}
"""Name -> the scheduler for a model's noise schedule; those that draw noise begin at its last timestep."""


def _in_batches(model: DiffusionModel, work: Callable[[slice], Tensor], count: int) -> Tensor:
    return torch.cat(model.execution.in_batches("draw", work, count, images_at_once(model)))


def _generators(seed: int, seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(derive(seed, "step noise", each)) for each in seeds]


@dataclass(frozen=True)
class Scheduled:
    """With a scheduler by name, and steps or guidance of one's own.

    Attributes:
        seed: of the noise that is drawn on the way.
        steps, guidance: none: what the policy says.
    """

    scheduler: SchedulerName = "dpm-solver++"
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    @torch.no_grad()
    def __call__(
        self, model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
    ) -> Tensor:
        """See :class:`safeguard.diffusion.sampling.Sampler`."""
        scale = guidance if self.guidance is None else self.guidance
        noise = initial_noise(model, seeds)

        def work(rows: slice) -> Tensor:
            scheduler = SCHEDULERS[self.scheduler](model.pipeline.scheduler.config)
            scheduler.set_timesteps(self.steps or steps)
            generators = _generators(self.seed, seeds[rows])
            latents: Tensor = noise[rows] * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(latents, t)
                output = guided_prediction(model, scaled, t.long(), prompt[rows], scale)
                latents = scheduler.step(output, t, latents, generator=generators).prev_sample
            return latents

        return _in_batches(model, work, len(seeds))


def levels(model: DiffusionModel, steps: int) -> list[tuple[Tensor, float, float]]:
    """Of every step of a DDIM run: its timestep, abar there, and abar' after it."""
    scheduler = ddim(model.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    abar, stride = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps // steps
    last = scheduler.final_alpha_cumprod
    return [(t, float(abar[t]), float(abar[t - stride] if t >= stride else last)) for t in scheduler.timesteps]


def step_deviation(now: float, then: float, eta: float) -> float:
    """sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar'), from abar (``now``) to abar' (``then``)."""
    return float(eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5)


@dataclass(frozen=True)
class NoisyDDIM:
    r"""DDIM with enlarged noise (arXiv 2505.17013): with abar before and abar' after a step, and z ~ N(0, I),

    sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')

    x' = sqrt(abar') x0 + sqrt(\|1 - abar' - sigma²\|) eps + v sigma z

    x0 and eps are those of the guided output. eta = 0 is the deterministic DDIM, eta = v = 1 the usual stochastic one.
    The absolute value is the paper's code's: from eta = 1.05 on the last steps would have no root otherwise.

    Attributes:
        eta: factor on the usual deviation of the noise.
        v: factor on the noise alone, which the rest of the step does not know of.
        steps: none: what the policy says.
        seed: of z.
    """

    eta: float
    v: float = 1.0
    steps: int | None = None
    seed: int = 0

    @torch.no_grad()
    def __call__(
        self, model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
    ) -> Tensor:
        """See :class:`safeguard.diffusion.sampling.Sampler`."""
        noise = initial_noise(model, seeds)

        def work(rows: slice) -> Tensor:
            generators, latents = _generators(self.seed, seeds[rows]), noise[rows]
            for t, now, then in levels(model, self.steps or steps):
                output = guided_prediction(model, latents, t, prompt[rows], guidance)
                z = torch.stack([torch.randn(model.latent_shape, generator=each) for each in generators])
                latents = self.step(*predicted(model, output, latents, now), z.to(latents), now, then)
            return latents

        return _in_batches(model, work, len(seeds))

    def step(self, x0: Tensor, eps: Tensor, z: Tensor, now: float, then: float) -> Tensor:
        """x' by the formula; all of one shape."""
        sigma = step_deviation(now, then, self.eta)
        following: Tensor = then**0.5 * x0 + abs(1 - then - sigma**2) ** 0.5 * eps + self.v * sigma * z
        return following


def predicted(model: DiffusionModel, output: Tensor, latents: Tensor, abar: float) -> tuple[Tensor, Tensor]:
    """x0 and eps by what the network says of latents at abar."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    if model.prediction_type == "epsilon":
        return (latents - noise * output) / signal, output
    return signal * latents - noise * output, signal * output + noise * latents


@dataclass(frozen=True)
class Relay:
    """Deterministic DDIM whose first steps another denoiser takes.

    Attributes:
        first: how many.
        other: inside ``other(model)``, the model has the other's weights.
        steps: in all; none: what the policy says.
    """

    first: int
    other: Callable[[DiffusionModel], AbstractContextManager[object]]
    steps: int | None = None

    @torch.no_grad()
    def __call__(
        self, model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
    ) -> Tensor:
        """See :class:`safeguard.diffusion.sampling.Sampler`."""
        scheduler = ddim(model.pipeline.scheduler.config)
        scheduler.set_timesteps(self.steps or steps)

        def run(latents: Tensor, times: Tensor) -> Tensor:
            def work(rows: slice) -> Tensor:
                found = latents[rows]
                for t in times:
                    output = guided_prediction(model, found, t, prompt[rows], guidance)
                    found = scheduler.step(output, t, found).prev_sample
                return found

            return _in_batches(model, work, len(seeds))

        with self.other(model):
            latents = run(initial_noise(model, seeds), scheduler.timesteps[: self.first])
        return run(latents, scheduler.timesteps[self.first :])
