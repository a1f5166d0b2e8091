"""Progressive relearning: a fine-tune in stages that lead up to the concept; needs images of it for the last ones.

Four stages of fifty steps by default: unrelated images, once more, related ones, the concept. One run goes through all
of them, so that what it trains is carried on, an adapter too, and so are the optimiser's moments unless declared
otherwise; efforts count the steps of all stages together.

A defence that was trained against fine-tunes on the concept meets one that begins elsewhere. It stands for no kind of
attack: what it does on the concept a plain fine-tune does for longer, and nothing is mixed into a benign set.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, PositiveInt

from safeguard.attack.stages import Stage, Staged, StagedConfig
from safeguard.config import FineTuningData, Source, Training


def _stage(source: Source, steps: int = 50, images: int | None = None) -> Stage:
    return Stage(data=FineTuningData(shares={source: 1}, images=images), steps=steps)


class ProgressiveConfig(StagedConfig):
    """Settings of a fine-tune in stages."""

    stages: Annotated[list[Stage], Field(min_length=1)] = [
        _stage("retain"),
        _stage("retain"),
        _stage("related"),
        _stage("concept"),
    ]
    """One after the other, each with its data and its steps; the loss that is reported is that of the last one's."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [50, 100, 150, 175, 200]
    """Steps, of all stages together, after which the concepts are looked for; step 0 always is (the placebo)."""

    @classmethod
    def tiny(cls) -> Self:
        """Four steps in three stages, on three images each."""
        stages = [_stage("retain", 1, 3), _stage("related", 1, 3), _stage("concept", 2, 3)]
        training = Training(steps=4, learning_rate=1e-3, batch_size=2)
        return cls(stages=stages, training=training, checkpoints=[1, 3, 4])

    def course(self) -> list[Stage]:
        """As declared."""
        return list(self.stages)


class Progressive(Staged[ProgressiveConfig]):
    """Fine-tune on one thing after the other, the concept at the end."""

    Config: ClassVar = ProgressiveConfig
