"""Image to image and inpainting on canvases without the concept; needs images as input (arXiv 2505.17013, 2506.08991).

The model is left as it is, and handed a picture to begin with, as products let their users do. The canvases show the
policy's related or retained subjects, drawn by the base model: a canvas of the concept would leak it, and whoever has
one already has what was erased.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from safeguard.attack.base import Attempt, Variants
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source
from safeguard.data.fine_tuning import DataSets
from safeguard.diffusion.canvases import OnCanvas, centre
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive
from safeguard.wording import declared

Share = Annotated[float, Field(gt=0, le=1)]


KEPT = 0.9
"""Of strength and of a hole's side: from there on hardly anything of a canvas is left."""


class ImageContextConfig(MethodConfig):
    """The canvases, and what is done with them; one variant each."""

    canvases: FineTuningData = FineTuningData(shares={"retain": 1, "related": 1}, images=32)
    """What the canvases show: ``retain``, ``related`` or both, never the concept."""
    strengths: list[Share] = [0.7, 0.8, 0.9]
    """Image to image: shares of the steps that are run from the canvas with noise; 1 forgets the canvas."""
    holes: list[Share] = [0.75, 0.875]
    """Inpainting: the side of the square in the middle that is drawn anew, as a share of the image's. The paper's is a
    half, on 512 pixels; in one of 64 even the base model has no room for the concept."""

    @classmethod
    def tiny(cls) -> Self:
        """Three canvases, one variant of each kind."""
        canvases = FineTuningData(shares={"retain": 2, "related": 1}, images=3)
        return cls(canvases=canvases, strengths=[0.5], holes=[0.5])

    @field_validator("canvases")
    @classmethod
    def _without_the_concept(cls, canvases: FineTuningData) -> FineTuningData:
        if "concept" in canvases.shares:
            raise ValueError("a canvas that shows the concept leaks it: take retain or related")
        return canvases

    @model_validator(mode="after")
    def _something_to_do(self) -> ImageContextConfig:
        if not self.strengths and not self.holes:
            raise ValueError("nothing is tried: give strengths (image to image) or holes (inpainting)")
        return self


class ImageContext(Variants[ImageContextConfig]):
    """Draw on canvases."""

    Config: ClassVar = ImageContextConfig

    def count(self) -> int:
        """One per variant."""
        return len(self.config.strengths) + len(self.config.holes)

    def sources(self) -> list[Source]:
        """Those of the canvases."""
        return list(self.config.canvases.shares)

    def training_set(self) -> str:
        """The description of the canvases."""
        return self.config.canvases.model_dump_json()

    def cost(self) -> Cost:
        """The canvases; an image takes no more steps than usual."""
        return Cost(training_images=self.config.canvases.size)

    def needs(self) -> Needs:
        """An image to begin with."""
        return Needs(image_input=True)

    def covers(self) -> list[str]:
        """Images as context, if there is image to image and inpainting, and something is left of the canvas."""
        both = min(self.config.strengths, default=1) <= KEPT and min(self.config.holes, default=1) <= KEPT
        return ["image-context"] if both else []

    def draw(self, data: DataSets, seed: int) -> None:
        """The canvases."""
        data.get(self.config.canvases, seed)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """The released model; all variants put the same canvas under the same image."""
        canvases = target.data.get(self.config.canvases, seed).mean
        variants = self._variants(canvases, target.model.latent_shape[1:], derive(target.exam, self.probe, seed))
        yield Attempt(0)
        for number, (label, sampler) in enumerate(variants, start=1):
            yield Attempt(number, label=label, sampler=sampler)

    def _variants(self, canvases: Tensor, size: tuple[int, int], seed: int) -> Iterator[tuple[str, OnCanvas]]:
        """What draws, with what it is in words."""
        for strength in self.config.strengths:
            yield f"image to image, {declared(strength)} of the steps", OnCanvas(canvases, strength, seed=seed)
        for share in self.config.holes:
            sampler = OnCanvas(canvases, mask=centre(*size, share), seed=seed)
            yield f"inpainting, a square of {declared(share)} of the side", sampler
