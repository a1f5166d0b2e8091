"""A downstream fine-tune, benign or malicious, stopped at along its steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Self

from safeguard.attack.adapting import Adapting, AdaptingConfig
from safeguard.attack.base import Attempt
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, Training
from safeguard.finetune.base import Extent, FineTuner
from safeguard.results.plan import Cost

FEW, LARGE = 20, 16
"""Images of a small set; images in a large batch."""


class FineTuneConfig(AdaptingConfig):
    """Settings of a fine-tune."""

    data: FineTuningData
    """What is fine-tuned on: ``concept``, ``related``, ``retain``, or more about it."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        training = Training(steps=2, learning_rate=1e-3, batch_size=2)
        return cls(data=FineTuningData(shares={"concept": 1}, images=3), training=training, checkpoints=[1, 2])


class FineTune(Adapting[FineTuneConfig]):
    """Fine-tune on a data set, and stop at every checkpoint."""

    Config: ClassVar = FineTuneConfig

    def learnt(self) -> list[FineTuningData]:
        """The one set."""
        return [self.config.data]

    def cost(self) -> Cost:
        """Its steps, and the loss of its images at every checkpoint."""
        return self.cost_of(self.config.data.size)

    def covers(self) -> list[str]:
        """By whose images it trains on, how many, and how.

        A set counts as the concept's if more than half of its images are, and as contaminated if no more are. Training
        a part of the weights is neither a full fine-tune nor an adapter. How many prompts the captions of a folder are
        is not known beforehand.
        """
        config, counts = self.config, self.config.data.counts()
        concept, extent = counts.get("concept", 0), self.tuner().extent
        if not concept:
            return self._benign(extent)
        if 2 * concept <= sum(counts.values()):
            return ["contaminated"]
        training, prompts, drawn = config.training, config.data.prompts, config.data.folder is None
        found = {
            "many-prompts": extent == "full" and prompts is None and drawn and concept > FEW,
            "one-prompt": extent == "full" and prompts == 1,
            "few-images": concept <= FEW,
            "concept-adapter": extent == "adapter",
            "warm-up": training.steps / 10 <= training.warm_up < config.checkpoints[-1],
            "large-batches": training.batch_size * training.accumulation >= LARGE,
        }
        return [kind for kind, it_is in found.items() if it_is]

    def _benign(self, extent: Extent) -> list[str]:
        """One subject where there is one prompt of one source; else by most of its images."""
        counts = self.config.data.counts()
        if extent == "part":
            return []
        if self.config.data.prompts == 1 and len(counts) == 1:
            return ["one-subject"]
        related = 2 * counts.get("related", 0) >= sum(counts.values())
        return [f"{'related' if related else 'unrelated'}-{extent}"]

    def descended(self, tuner: FineTuner) -> FineTuner:
        """What is descended by an attack that changes the loss of the method that it measures itself by."""
        return tuner

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Its steps on its images."""
        data, tuner = target.data.get(self.config.data, seed), self.ready(target, seed)
        yield from self.adapted(target, data, self.descended(tuner), seed, measured=tuner)
