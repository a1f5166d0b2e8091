"""Self-regeneration (MemoRa, arXiv 2510.03263): few images, and the model draws its training set; needs weights.

1. The base model draws a handful of images of the concept, in pairs.
2. Each is inverted through the released model (DDIM, under its prompt, with guidance), up to the latent from which a
   run of 50 steps would begin with its step 15.
3. Between the two latents of a pair there are others on the great circle (slerp), both ends among them: eleven in all.
4. From each of these the released model draws on to the end: 33 images of three pairs.
5. An adapter is trained on those, under the prompts.

What an eraser has led away from a prompt is often still there in the latents behind an image.

Departures: every pair has a prompt of its own, as long as there are as many (the source has one prompt for all), since
all prompts are judged; what lies between two prompts has the nearer end's. Images are neither cropped nor mirrored.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from safeguard.attack.adapting import Adapting, AdaptingConfig
from safeguard.attack.base import Attempt
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, Training
from safeguard.data.latents import LatentSet, encode
from safeguard.diffusion.inversion import invert, resume, slerp
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import FineTuningMethod
from safeguard.results.plan import Cost


class SelfRegenerationConfig(AdaptingConfig):
    """How the training set is drawn, and how it is trained on."""

    images: PositiveInt = 6
    """Images of the concept that the base model draws; two make a pair."""
    prompts: PositiveInt | None = None
    """Different prompts of them, drawn by the seed; none: one for every pair."""
    between: Annotated[int, Field(ge=2)] = 11
    """Images that the released model draws of a pair, those of its two ends among them."""
    sampler_steps: PositiveInt = 50
    """Steps of a DDIM run."""
    restart: NonNegativeInt = 15
    """Its step with which the released model begins; 0: from noise."""
    guidance: PositiveFloat = 7.5
    """Of inversion and drawing."""
    method: FineTuningMethod = FineTuningMethod(name="lora")
    """Fine-tuning method with its settings."""
    training: Training = Training(steps=500, learning_rate=1e-4, schedule="cosine", accumulation=4)
    """How it runs; its steps are the budget."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 50, 100, 200, 500]
    """Steps after which the concepts are looked for; step 0 always is (the placebo)."""

    @field_validator("images")
    @classmethod
    def _pairs(cls, images: int) -> int:
        if images % 2:
            raise ValueError(f"{images} images do not make pairs; take an even number")
        return images

    @model_validator(mode="after")
    def _resumes(self) -> SelfRegenerationConfig:
        if self.restart >= self.sampler_steps:
            raise ValueError(f"of {self.sampler_steps} steps none is left from step {self.restart}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two images, three between them, four steps."""
        training = Training(steps=4, learning_rate=1e-3, batch_size=2)
        return cls(images=2, between=3, sampler_steps=4, restart=1, training=training, checkpoints=[2, 4])


class SelfRegeneration(Adapting[SelfRegenerationConfig]):
    """Train on what the released model draws from a few inverted images, and stop at every checkpoint."""

    Config: ClassVar = SelfRegenerationConfig

    @property
    def data(self) -> FineTuningData:
        """The few images that the base model draws."""
        config = self.config
        return FineTuningData(shares={"concept": 1}, images=config.images, prompts=config.prompts or config.images // 2)

    @property
    def own(self) -> int:
        """Images that the released model draws."""
        return self.config.images // 2 * self.config.between

    def learnt(self) -> list[FineTuningData]:
        """The few images."""
        return [self.data]

    def cost(self) -> Cost:
        """Its steps, and two rows for every step of every inversion and every image that is drawn."""
        steps = self.config.sampler_steps - self.config.restart
        calls = 2 * steps * (self.config.images + self.own)
        return self.cost_of(self.own, calls)

    def covers(self) -> list[str]:
        """Images that the model itself can still draw."""
        return ["self-regeneration"]

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Its steps on the released model's own images."""
        data = regenerated(target.model, target.data.get(self.data, seed), self.config)
        yield from self.adapted(target, data, self.ready(target, seed), seed)


def regenerated(model: DiffusionModel, given: LatentSet, config: SelfRegenerationConfig) -> LatentSet:
    """What a model draws between the inverted images of each pair, under their captions.

    Args:
        given: images, an even number; those with one caption make pairs first.
    """
    rows = sorted(range(len(given)), key=lambda row: given.captions[row])
    captions = [given.captions[row] for row in rows]
    steps, guidance, first = config.sampler_steps, config.guidance, config.restart
    prompt = model.encode_prompts(captions)
    latents = invert(model, prompt, given.mean[rows], steps=steps, guidance=guidance, first=first)
    shares = torch.linspace(0, 1, config.between).tolist()
    between = torch.cat([slerp(latents[::2], latents[1::2], share) for share in shares])
    named = [caption for share in shares for caption in captions[round(share) :: 2]]
    drawn = resume(model, model.encode_prompts(named), between, steps=steps, guidance=guidance, first=first)
    return encode(model, model.decode(drawn), named)
