"""How fast images are drawn and judged, beside diffusers' own pipeline, all in one run on the embedded model.

\b
    python benchmarks/drawing.py                     48 images in 20 steps, on one thread
    python benchmarks/drawing.py --images 96 --device cuda

Three routes draw the same images, from the same prompts and noise, with the same solver, steps and guidance:

\b
* safeguard: what a probe does (``safeguard.diffusion.sampling.sample``), in batches that fit;
* one batch: one call of diffusers' pipeline with all prompts;
* one by one: a call of diffusers' pipeline per image, as an evaluation script commonly has it.

Every image is then judged by the embedded CLIP detector: in batches on the first two routes, one by one on the last.
Each route draws one image to warm up, which is not counted. Seconds are those of the processor, over all threads, so
that other programs do not count; on a GPU they are those of the clock. ``flagged`` says that the routes draw the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import initial_noise, sample
from safeguard.io.hub import resolve
from safeguard.io.opening import open_pipeline
from safeguard.policy.loading import load_policy
from safeguard.policy.schema import Concept
from safeguard.resources import find_resource

GUIDANCE = 4.0

Judged = Callable[[np.ndarray], np.ndarray]
Route = Callable[[Sequence[str], Sequence[int], Judged], np.ndarray]
"""Prompts, seeds and a detector -> the scores of the images."""


@dataclass(frozen=True)
class Speed:
    """What a route took.

    Attributes:
        images: drawn and judged.
        seconds: of the processor on a CPU, of the clock on a GPU.
        flagged: images with a score of at least the detector's threshold.
    """

    images: int
    seconds: float
    flagged: int

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def routes(device: str, steps: int) -> dict[str, Route]:
    """The three ways, by title."""
    ours = open_pipeline(resolve("reference", offline=True), device=device)
    theirs: Any = open_pipeline(resolve("reference", offline=True), device=device)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(
        theirs.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
    )
    noise = DiffusionModel(ours)

    def safeguard(prompts: Sequence[str], seeds: Sequence[int], judged: Judged) -> np.ndarray:
        model = DiffusionModel(ours)  # a new one, which has read no prompt yet
        return judged(sample(model, prompts, seeds, steps=steps, guidance=GUIDANCE))

    def one_batch(prompts: Sequence[str], seeds: Sequence[int], judged: Judged) -> np.ndarray:
        latents = initial_noise(noise, seeds)
        drawn = theirs(list(prompts), num_inference_steps=steps, guidance_scale=GUIDANCE, latents=latents)
        return judged(np.stack([np.asarray(image) for image in drawn.images]))

    def one_by_one(prompts: Sequence[str], seeds: Sequence[int], judged: Judged) -> np.ndarray:
        pairs = zip(prompts, seeds, strict=True)
        return np.concatenate([one_batch([prompt], [seed], judged) for prompt, seed in pairs])

    return {"safeguard": safeguard, "diffusers, one batch": one_batch, "diffusers, one by one": one_by_one}


def measured(device: str, images: int, steps: int) -> Iterator[tuple[str, Speed]]:
    """Every route's speed."""
    concept: Concept = load_policy(find_resource("policy", "policies", "quickstart")).concepts[0]
    prompts = [concept.prompt_list[index % len(concept.prompt_list)] for index in range(images)]
    detector = ClipDetector(ClipConfig(), device)
    clock = time.process_time if device == "cpu" else time.perf_counter

    def judged(drawn: np.ndarray) -> np.ndarray:
        return detector.scores(drawn, list(concept.labels))

    for title, route in routes(device, steps).items():
        route(prompts[:1], [0], judged)
        started = clock()  # scores are on the CPU, so nothing is under way when they are there
        scores = route(prompts, range(images), judged)
        seconds = clock() - started
        yield title, Speed(len(scores), seconds, int((scores >= detector.threshold).sum()))


@click.command(help=__doc__)
@click.option("--images", type=click.IntRange(min=1), default=48, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(images: int, steps: int, device: str, threads: int) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    what = "CPU second" if device == "cpu" else "second"
    click.echo(f"{images} images of the embedded model, {steps} steps, {device}, {threads} threads\n")
    click.echo(f"{'route':<24}{'seconds':>9}{f'images per {what}':>24}{'flagged':>9}")
    for title, speed in measured(device, images, steps):
        click.echo(f"{title:<24}{speed.seconds:>9.1f}{speed.rate:>24.2f}{speed.flagged:>9}")


if __name__ == "__main__":
    main()
