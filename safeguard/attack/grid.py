"""Given fine-tunes, one after the other, such as were the worst elsewhere; needs weights and images of the concept.

What a search found on one model is tried first on the next, which is cheap and often decides
(TamperBench, arXiv 2602.06911, reuses the worst configurations of small models on larger ones).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.configuration import Configuration
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source, Training
from safeguard.data.fine_tuning import DataSets
from safeguard.finetune.base import Extent
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.results.plan import Cost, Needs
from safeguard.results.unit import Trial, TrialKind
from safeguard.wording import CONFIGURATIONS


class GridConfig(MethodConfig):
    """What is tried."""

    configurations: Annotated[list[Configuration], Field(min_length=1)]
    """In this order, each up to its steps; as a finished unit of a search has them (``trial.configuration``)."""

    @classmethod
    def tiny(cls) -> Self:
        """Two of two steps."""
        data = FineTuningData(shares={"concept": 1}, images=3)
        training = Training(steps=2, learning_rate=1e-3, batch_size=2)
        methods = (FineTuningMethod(name="full"), FineTuningMethod(name="lora"))
        return cls(configurations=[Configuration(data=data, method=each, training=training) for each in methods])


class Grid(Attack[GridConfig]):
    """Try each configuration, and look at the model at its budget.

    It stands for no kind of a level: the floors of a level are on budgets in steps, and its efforts number
    configurations.
    """

    Config: ClassVar = GridConfig
    axis: ClassVar = CONFIGURATIONS
    resumable: ClassVar = True

    def efforts(self) -> list[int]:
        """One number per configuration, from 1."""
        return list(range(len(self.config.configurations) + 1))

    def trials(self) -> list[TrialKind]:
        """All are given."""
        return ["given"] * len(self.config.configurations)

    def _sets(self) -> list[FineTuningData]:
        return [images for each in self.config.configurations for images in each.sets]

    def sources(self) -> list[Source]:
        """Those of all their images."""
        return sources_of(self._sets())

    def training_set(self) -> str:
        """The descriptions of all their images."""
        return described(self._sets())

    def cost(self) -> Cost:
        """That of all fine-tunes; each measures its loss once."""
        tried = [each.fine_tune("", [each.budget]).cost() for each in self.config.configurations]
        return Cost(
            training_images=images_of(self._sets()),
            steps=sum(each.steps for each in tried),
            network_calls=sum(each.network_calls for each in tried),
        )

    def needs(self) -> Needs:
        """What the most demanding one needs."""
        needed = [each.fine_tune("", [each.budget]).needs() for each in self.config.configurations]
        steps, images = max(each.steps for each in needed), max(each.images for each in needed)
        return Needs(weights=True, gradients=True, steps=steps, images=images)

    def adaptation(self) -> tuple[FineTuningMethod, Training]:
        """The one that needs most memory."""
        return heaviest(self.config.configurations)

    def draw(self, data: DataSets, seed: int) -> None:
        """All their training sets."""
        for each in self._sets():
            data.get(each, seed)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each begins with the released weights; those that a killed run judged are left out."""
        yield Attempt(0)
        for number, tried in enumerate(self.config.configurations, start=1):
            for images in tried.sets:
                target.data.get(images, seed)
            if number in target.judged:
                continue
            trial = Trial(kind="given", tried=number, configuration=tried.model_dump(mode="json"))
            for look in tried.along(target, seed, f"{self.probe}, configuration {number}", [tried.budget]):
                yield replace(look, effort=number, label=tried.words, trial=trial)


def sources_of(sets: Sequence[FineTuningData]) -> list[Source]:
    """Of several descriptions, each source once."""
    return list(dict.fromkeys(source for each in sets for source in each.shares))


def described(sets: Sequence[FineTuningData]) -> str:
    """Several descriptions as one text, the same for the same images."""
    return json.dumps(sorted({each.model_dump_json() for each in sets}))


def images_of(sets: Sequence[FineTuningData]) -> int:
    """Images of several descriptions: sets of one source, size, folder and choice of prompts are one set."""
    parts = {
        (source, count, each.prompts, each.folder if source == each.shows else None)
        for each in sets
        for source, count in each.counts().items()
    }
    return sum(count for _, count, *_ in parts)


_EXTENTS: tuple[Extent, ...] = ("adapter", "part", "full")


def heaviest(configurations: Sequence[Configuration]) -> tuple[FineTuningMethod, Training]:
    """Of these, what trains the most parameters, then what sees the largest batch."""

    def weight(each: Configuration) -> tuple[int, int]:
        return _EXTENTS.index(finetuners.make(each.method).extent), each.training.batch_size

    found = max(configurations, key=weight)
    return found.method, found.training
