"""A declared distribution over fine-tunes: what a search draws configurations from.

Every choice is uniform and independent of the others; a learning rate is log-uniform between the bounds of its method.
What is chosen is written down by name: the index of an option, or a share between 0 and 1 along the range of a rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from safeguard.attack.configuration import Configuration
from safeguard.config import FineTuningData, MethodConfig, Optimizer, Schedule, Training
from safeguard.errors import SafeguardError
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners

T = TypeVar("T")
Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]


class Chooser:
    """Chooses by name; subclasses say how.

    Attributes:
        choices: what was chosen: the index of an option, or a share of a range.
        options: how many options there were; 0: a range.
    """

    def __init__(self) -> None:
        self.choices: dict[str, float] = {}
        self.options: dict[str, int] = {}

    def one_of(self, name: str, options: Sequence[T]) -> T:
        """One of several options; where there is but one there is no choice."""
        if len(options) == 1:
            return options[0]
        index = self.index(name, len(options))
        self.choices[name], self.options[name] = index, len(options)
        return options[index]

    def along(self, name: str, low: float, high: float) -> float:
        """Between two bounds, on a logarithmic scale."""
        share = self.share(name)
        self.choices[name], self.options[name] = share, 0
        return float(low * (high / low) ** share)

    def index(self, name: str, count: int) -> int:
        """One of so many options."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it chooses")

    def share(self, name: str) -> float:
        """Between 0 and 1."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it chooses")


class AtRandom(Chooser):
    """Independently, from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        import numpy as np

        self._generator = np.random.default_rng(seed)

    def index(self, name: str, count: int) -> int:
        """Each as likely as the others."""
        return int(self._generator.integers(count))

    def share(self, name: str) -> float:
        """Uniform."""
        return float(self._generator.random())


class Again(Chooser):
    """What was chosen before."""

    def __init__(self, chosen: Mapping[str, float]) -> None:
        super().__init__()
        self._chosen = chosen

    def index(self, name: str, count: int) -> int:
        """The same option."""
        return int(self._chosen[name])

    def share(self, name: str) -> float:
        """The same share."""
        return self._chosen[name]


class MethodSpace(MethodConfig):
    """One fine-tuning method: ``{method: {name: lora}, learning_rate: [1e-4, 1e-2], settings: {rank: [4, 16]}}``."""

    method: FineTuningMethod
    """With the settings that it always has."""
    learning_rate: Range
    """Lowest and highest, of AdamW."""
    settings: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Further settings, each with its options."""

    @model_validator(mode="after")
    def _ascends_and_fits(self) -> MethodSpace:
        if self.learning_rate[0] > self.learning_rate[1]:
            raise ValueError("the lowest learning rate comes first")
        if self.method.name not in finetuners.names():
            return self  # said by whoever checks the methods that settings name
        for each in self.all():
            try:
                finetuners.config(each)
            except SafeguardError as error:
                raise ValueError(error.what) from error
        return self

    def all(self) -> list[FineTuningMethod]:
        """The method with every combination of its settings."""
        combinations = itertools.product(*self.settings.values())
        return [self.made(dict(zip(self.settings, values, strict=True))) for values in combinations]

    def made(self, settings: Mapping[str, Any]) -> FineTuningMethod:
        """The method with these further settings."""
        return FineTuningMethod.model_validate(self.method.model_dump() | dict(settings))


METHODS = [
    {"method": {"name": "full"}, "learning_rate": [1e-6, 1e-4]},
    {"method": {"name": "lora"}, "learning_rate": [1e-5, 1e-3], "settings": {"rank": [4, 16, 64]}},
]
"""Where a suite says nothing, for Stable Diffusion's size; small models learn at higher rates."""


class Space(MethodConfig):
    """What is drawn from; a list with one entry fixes it."""

    methods: Annotated[list[MethodSpace], Field(min_length=1)] = [MethodSpace.model_validate(each) for each in METHODS]
    """Fine-tuning methods, each with its learning rates and its further settings."""
    optimizers: Annotated[dict[Optimizer, PositiveFloat], Field(min_length=1)] = {
        "adamw": 1.0,
        "momentum": 100.0,
        "sgd": 1000.0,
    }
    """Optimisers, and how many times larger than AdamW's their learning rates are."""
    schedules: Annotated[list[Schedule], Field(min_length=1)] = ["constant", "cosine"]
    """Courses of the learning rate."""
    warm_up: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)] = [0.0, 0.1, 0.3]
    """Warm-ups, as shares of the steps."""
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 4, 16]
    """Images at a time."""
    images: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 5, 20, 100]
    """Images of the concepts."""
    prompts: Annotated[list[PositiveInt | None], Field(min_length=1)] = [None, 1]
    """Different prompts of them; none: all."""
    contamination: Annotated[list[Share], Field(min_length=1)] = [1.0, 0.5]
    """Shares of the whole set that these images are; the rest shows retained subjects."""

    def draw(self, choose: Chooser, steps: int) -> Configuration:
        """One configuration of so many steps."""
        among = list(range(len(self.methods)))
        place = choose.one_of("method", among)
        of_method = self.methods[place]
        settings = {
            name: choose.one_of(f"{name} of method {place}", options) for name, options in of_method.settings.items()
        }
        optimizer = choose.one_of("optimizer", list(self.optimizers))
        low, high = (self.optimizers[optimizer] * bound for bound in of_method.learning_rate)
        training = Training(
            steps=steps,
            learning_rate=choose.along("learning rate", low, high),
            optimizer=optimizer,
            schedule=choose.one_of("schedule", self.schedules),
            warm_up=min(steps - 1, round(steps * choose.one_of("warm-up", self.warm_up))),
            batch_size=choose.one_of("batch", self.batch_sizes),
        )
        images, prompts = choose.one_of("images", self.images), choose.one_of("prompts", self.prompts)
        data = data_of(images, prompts, choose.one_of("contamination", self.contamination))
        return Configuration(data=data, method=of_method.made(settings), training=training)

    def largest(self, steps: int) -> list[Configuration]:
        """Of each method one with the last of its options in the largest batch, for counting memory."""
        data, training = self.sets()[0], Training(steps=steps, batch_size=max(self.batch_sizes))
        last = [each.made({name: options[-1] for name, options in each.settings.items()}) for each in self.methods]
        return [Configuration(data=data, method=each, training=training) for each in last]

    def sets(self) -> list[FineTuningData]:
        """Every training set that may be asked for, those that a method needs beside included."""
        learnt = [data_of(*each) for each in itertools.product(self.images, self.prompts, self.contamination)]
        beside = (finetuners.make(each).beside for of_method in self.methods for each in of_method.all())
        return learnt + [images for images in beside if images is not None]


def data_of(images: int, prompts: int | None, share: float) -> FineTuningData:
    """So many images of the concepts, and as many of retained subjects that they are this share of all."""
    others = round(images * (1 - share) / share)
    shares = {"concept": float(images), "retain": float(others)} if others else {"concept": 1.0}
    return FineTuningData.model_validate({"shares": shares, "images": images + others, "prompts": prompts})
