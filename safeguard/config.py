"""Base of every method's settings, and what settings of policies, suites, hardening and attacks have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Source = Literal["concept", "related", "retain"]
"""Whose images a fine-tune trains on: the concepts', their related subjects', the retained ones'."""
Precision = Literal["float32", "bfloat16"]
"""Of matrix products and convolutions."""
Schedule = Literal["constant", "cosine", "linear"]
"""Course of a learning rate: as it is, or to zero along half a cosine or in a line."""
Optimizer = Literal["sgd", "momentum", "adam", "adamw", "adafactor", "sign", "adamw-8bit"]
"""With its library's defaults; ``momentum`` is SGD with 0.9, ``adafactor`` scales its steps by a tensor's size,
``sign`` is Lion without decay, and ``adamw-8bit``, of bitsandbytes, needs a CUDA device."""

SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}
"""Share of the learning rate by the share of the steps that is done."""


class MethodConfig(BaseModel):
    """Strict and immutable; field docstrings become descriptions, defaults are the paper's unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def tiny(cls) -> Self:
        """Settings with which the method does all it can in about a second, on a model of random weights.

        The contract tests (``tests/contracts``) run every registered method with them. A method whose defaults take
        longer gives its own: at least four steps where there are steps, and batches of at least two.
        """
        return cls()


class Training(MethodConfig):
    """How a fine-tune runs, whatever its method; hardening simulates, and attacks run, what is declared here."""

    steps: PositiveInt = 200
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-5
    """Largest learning rate."""
    schedule: Schedule = "constant"
    """Its course after the warm-up."""
    warm_up: NonNegativeInt = 0
    """Steps over which it rises in a line."""
    batch_size: PositiveInt = 1
    """Images at a time."""
    accumulation: PositiveInt = 1
    """Batches per optimiser step, whose gradients are averaged."""
    optimizer: Optimizer = "adamw"
    """Optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay, in 8 bit, too."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    precision: Precision | None = None
    """Of the denoiser's matrix products and convolutions; none: as the model is run otherwise."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of what is added to the noise of an image, one number per channel."""
    min_snr: PositiveFloat | None = None
    """gamma of min-SNR weights; none: all timesteps count alike."""

    @model_validator(mode="after")
    def _trains(self) -> Training:
        if self.warm_up >= self.steps:
            raise ValueError(f"a warm-up of {self.warm_up} steps leaves nothing of {self.steps}; shorten it")
        return self

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0.

        Over w steps of warm-up the shares are 1/(w+1), 2/(w+1), …, so that no step is lost and the next has the whole.
        """
        if step < self.warm_up:
            return self.learning_rate * ((step + 1) / (self.warm_up + 1))
        return self.learning_rate * SCHEDULES[self.schedule]((step - self.warm_up) / (self.steps - self.warm_up))


IMAGES = 32
"""Of a data set that does not say."""


class FineTuningData(MethodConfig):
    """What a fine-tune sees; the plain word ``concept`` stands for ``{shares: {concept: 1}}``.

    The base model draws the images, but for those of one source where somebody's own are named: ``{folder: ./mine,
    shows: concept, images: 40}``, or, contaminated with them, ``{folder: ./mine, shows: concept, shares: {concept: 20,
    retain: 80}}``.
    """

    shares: Annotated[dict[Source, PositiveFloat], Field(min_length=1)]
    """Whose images, and how many beside each other: ``{concept: 20, retain: 80}`` is a contaminated set."""
    images: PositiveInt | None = None
    """Images in all; none: as many as there are by themselves, the pool of a hardening, 32 in an attack."""
    prompts: PositiveInt | None = None
    """Different prompts of each source, drawn by the seed: 1 is the single-prompt attack; none: all."""
    folder: Annotated[str, Field(min_length=1)] | None = None
    """Folder of somebody's own images with captions, in a suite's file; relative to that file."""
    shows: Source | None = None
    """Whose these are; ``retain`` says that they are benign."""
    digest: str | None = None
    """sha256 over files and captions of the folder; none: what is there when a certification begins."""
    refused: NonNegativeInt = 0
    """Rows of the folder that the content filter refused when that was read."""

    @model_validator(mode="before")
    @classmethod
    def _from_a_word(cls, given: Any) -> Any:
        if isinstance(given, dict) and "shares" not in given and given.get("shows") in get_args(Source):
            return {**given, "shares": {given["shows"]: 1.0}}
        return {"shares": {given: 1.0}} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _all_there(self) -> FineTuningData:
        if none := [source for source, count in self.counts().items() if not count]:
            raise ValueError(f"of {self.size} images none would be of {none[0]!r}; ask for more images")
        return self

    @model_validator(mode="after")
    def _whose_folder(self) -> FineTuningData:
        if (self.folder is None) != (self.shows is None):
            raise ValueError("'folder' and 'shows' go together: where the images lie, and whose they are")
        if self.folder is None:
            if self.digest is not None or self.refused:
                raise ValueError("a digest is that of a 'folder', and there is none")
        elif self.shows not in self.shares:
            raise ValueError(f"the folder shows {self.shows!r}, of which 'shares' has none")
        elif self.prompts is not None:
            raise ValueError("'prompts' are those of images that are drawn; images of a folder have captions")
        return self

    @property
    def size(self) -> int:
        """Images in all where they are drawn for the purpose."""
        return IMAGES if self.images is None else self.images

    def counts(self) -> dict[Source, int]:
        """How many images are of each source: the shares, rounded by largest remainder."""
        images, total = self.size, sum(self.shares.values())
        exact = {source: images * share / total for source, share in self.shares.items()}
        found = {source: math.floor(value) for source, value in exact.items()}
        by_remainder = sorted(exact, key=lambda source: found[source] - exact[source])
        for source in by_remainder[: images - sum(found.values())]:
            found[source] += 1
        return found
