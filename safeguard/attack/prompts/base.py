"""What searches for prompts share: the images that guide them, what is kept, and when it is looked at.

A search follows images that the base model drew for the concept. It looks for one prompt per image under which the
attacked model predicts the noise on that image well, and keeps the best so far, the declared prompt to begin with. At
a checkpoint the kept prompts are one set: what is judged are fresh images of all of them, whose noise no search ever
sees, so nothing is selected on what a bound is computed from. Which prompts are better is measured at noise of the
search's own, which stays the same throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, TypeVar

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from safeguard.attack.base import Attack, Prompts
from safeguard.attack.prompts.points import Points
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source
from safeguard.data.content_filter import is_allowed
from safeguard.data.fine_tuning import DataSets
from safeguard.data.latents import LatentSet
from safeguard.data.screening import surroundings
from safeguard.errors import UsageFault
from safeguard.policy.schema import Concept
from safeguard.results.plan import Needs


class PromptSearchConfig(MethodConfig):
    """Settings of every search for prompts."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [500, 1000, 2000]
    """Steps after which the concepts are looked for; step 0 always is, with the declared prompts."""

    @field_validator("checkpoints")
    @classmethod
    def _ascend(cls, checkpoints: list[int]) -> list[int]:
        if sorted(set(checkpoints)) != checkpoints:
            raise ValueError("checkpoints must ascend")
        return checkpoints

    @property
    def steps(self) -> int:
        """All of them."""
        return self.checkpoints[-1]


class GuidedSearchConfig(PromptSearchConfig):
    """Settings of a search that images of the concept guide."""

    images: PositiveInt = 16
    """Images of the concepts, drawn by the base model; a prompt is looked for to each."""
    points: PositiveInt = 8
    """Draws of timestep and noise of every image at which prompts are compared."""


S = TypeVar("S", bound=PromptSearchConfig)
G = TypeVar("G", bound=GuidedSearchConfig)


class PromptSearch(Attack[S]):
    """A search for prompts, looked at along the way."""

    axis: ClassVar = "optimisation steps"

    def efforts(self) -> list[int]:
        """Step 0 and every checkpoint."""
        return [0, *self.config.checkpoints]

    def covers(self) -> list[str]:
        """Prompts found by optimisation."""
        return ["prompt-attack"]


class GuidedSearch(PromptSearch[G]):
    """A search that images of the concept guide, through the model's gradients."""

    @property
    def data(self) -> FineTuningData:
        """The images that guide it."""
        return FineTuningData(shares={"concept": 1}, images=self.config.images)

    def sources(self) -> list[Source]:
        """The concepts."""
        return ["concept"]

    def training_set(self) -> str:
        """The description of its images."""
        return self.data.model_dump_json()

    def needs(self) -> Needs:
        """Gradients, and its images and steps; no weight is changed."""
        return Needs(weights=True, gradients=True, images=self.config.images, steps=self.config.steps)

    def draw(self, data: DataSets, seed: int) -> None:
        """Its images."""
        data.get(self.data, seed)


def subjects(concepts: Sequence[Concept], captions: Sequence[str]) -> list[Concept]:
    """Whose image each is.

    Raises:
        UsageFault: a concept has no image at all, so nothing could be found for it.
    """
    found = [next(concept for concept in concepts if caption in concept.prompt_list) for caption in captions]
    if lacking := [concept.name for concept in concepts if concept not in found]:
        raise UsageFault(
            f"none of the {len(captions)} images that guide the search is of {lacking[0]!r}",
            fix="ask for more images in the probe's attack",
            where=f"concepts.{lacking[0]}",
        )
    return found


class Kept:
    """The best prompt so far of each image, and how well the model predicts its noise there.

    Attributes:
        model: what is attacked.
        captions: of the images; the prompts that a search begins with.
        texts: the best prompts.
        losses: of these, (n,).
    """

    def __init__(self, target: Target, data: LatentSet, points: Points) -> None:
        self.model, self._points = target.model, points
        self._concepts, self._beside = target.concepts, surroundings(target.concepts)
        self.captions, self._of = data.captions, subjects(target.concepts, data.captions)
        self.texts = list(data.captions)
        self.losses = self.measure(self.texts)

    def measure(self, texts: Sequence[str]) -> Tensor:
        """The loss of a prompt for each image, (n,)."""
        with torch.no_grad():
            return self._points.losses(self.model, self.model.encode_anew(list(texts)))

    def allowed(self, text: str) -> bool:
        """Whether the content filter lets it be drawn beside the concepts."""
        return is_allowed(f"{self._beside} {text}")

    def improve(self, texts: Sequence[str], losses: Tensor, than: Tensor) -> Tensor:
        """Which of these prompts are better than so much and may be drawn, (n,)."""
        better = (losses < than).tolist()
        found = [smaller and self.allowed(text) for text, smaller in zip(texts, better, strict=True)]
        return torch.tensor(found, device=losses.device)

    def offer(self, texts: Sequence[str], losses: Tensor | None = None) -> None:
        """Take what is better than before; ``losses`` are those of the texts where they are known."""
        losses = self.measure(texts) if losses is None else losses
        better = self.improve(texts, losses, self.losses)
        self.losses = losses.where(better, self.losses)
        self.texts = [new if taken else old for new, old, taken in zip(texts, self.texts, better.tolist(), strict=True)]

    @property
    def loss(self) -> float:
        """The mean over the images."""
        return self.losses.mean().item()

    @property
    def prompts(self) -> Prompts:
        """The best prompts, by concept."""
        rows = list(zip(self._of, self.texts, strict=True))
        return Prompts({c.name: [text for of, text in rows if of is c] for c in self._concepts})
