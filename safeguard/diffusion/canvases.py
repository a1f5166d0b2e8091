"""Drawing on a canvas: image to image, and inpainting with a denoiser that knows no masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.sampling import guided_prediction, images_at_once, initial_noise, solver
from safeguard.seeds import derive


@dataclass(frozen=True)
class OnCanvas:
    """Image to image (SDEdit, arXiv 2108.01073); with a mask, inpainting (RePaint, arXiv 2201.09865, equation 8).

    The usual run of DPM-Solver++ is entered where ``strength`` of its steps are left, from the canvas with as much
    noise as belongs there; strength 1 begins with noise alone. Under a mask, what lies outside it is after every step
    the canvas with the noise of that step, and in the end the canvas itself. RePaint's resampling is left out.

    Attributes:
        canvases: latents (m, c, h, w); the seed of an image chooses its canvas.
        strength: share of the steps that are run, in (0, 1]; at least one is.
        mask: (h, w), true where is drawn; none: everywhere.
        seed: of the choice.
    """

    canvases: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    seed: int = 0

    def chosen(self, seeds: Sequence[int]) -> list[int]:
        """The number of the canvas under each image."""
        return [derive(self.seed, "canvas", each) % len(self.canvases) for each in seeds]

    @torch.no_grad()
    def __call__(
        self, model: DiffusionModel, prompt: Conditioning, seeds: Sequence[int], *, steps: int, guidance: float
    ) -> Tensor:
        """See :class:`safeguard.diffusion.sampling.Sampler`."""
        noise, canvas = initial_noise(model, seeds), self.canvases[self.chosen(seeds)].to(model.device)

        def work(rows: slice) -> Tensor:
            return self._run(model, prompt[rows], noise[rows], canvas[rows], steps, guidance)

        return torch.cat(model.execution.in_batches("draw", work, len(seeds), images_at_once(model)))

    def _run(
        self, model: DiffusionModel, prompt: Conditioning, noise: Tensor, canvas: Tensor, steps: int, guidance: float
    ) -> Tensor:
        scheduler = solver(model.pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        first = steps - max(1, round(self.strength * steps))
        scheduler.set_begin_index(first)
        times = scheduler.timesteps[first:]
        around = [model.add_noise(canvas, noise, t.to(model.device)[None]) for t in times]
        latents = around[0] if first else noise
        for t, outside in zip(times, [*around[1:], canvas], strict=True):
            output = guided_prediction(model, latents, t, prompt, guidance)
            latents = scheduler.step(output, t, latents).prev_sample
            if self.mask is not None:
                latents = torch.where(self.mask.to(latents.device), latents, outside)
        return latents


def centre(height: int, width: int, share: float) -> Tensor:
    """A mask (height, width), true in the middle: ``share`` of either side, at least one position."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = (max(1, round(share * side)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    mask[top : top + rows, left : left + columns] = True
    return mask
