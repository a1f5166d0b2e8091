"""A downstream fine-tune, benign or malicious, stopped at along its steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Self

from safeguard.attack.adapting import Adapting, AdaptingConfig
from safeguard.attack.base import Attempt, Prompts
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, Source, Training
from safeguard.data.fine_tuning import DataSets
from safeguard.finetune.base import FineTuner
from safeguard.results.plan import Cost, Needs

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

    def _images(self) -> list[FineTuningData]:
        """What it learns, and what its method needs beside."""
        beside = self.tuner().beside
        return [self.config.data] if beside is None else [self.config.data, beside]

    def sources(self) -> list[Source]:
        """Those of its images."""
        return list(dict.fromkeys(source for images in self._images() for source in images.shares))

    def training_set(self) -> str:
        """The description of its images."""
        return "\n".join(images.model_dump_json() for images in self._images())

    def cost(self) -> Cost:
        """Its steps, and the loss of its images at every checkpoint; as many images beside are seen each time."""
        images = self._images()
        found = self.cost_of(self.config.data.size, training_images=sum(part.size for part in images))
        return found.model_copy(update={"network_calls": found.network_calls * len(images)})

    def needs(self) -> Needs:
        """Weights, gradients, its steps, and its images of the concept."""
        images = self.config.data.counts().get("concept", 0)
        return Needs(weights=True, gradients=True, steps=self.config.checkpoints[-1], images=images)

    def covers(self) -> list[str]:
        """By whose images it trains on, how many, and how."""
        data, training = self.config.data, self.config.training
        adapter = self.tuner().adds_parameters
        how = "adapter" if adapter else "full"
        if "concept" not in data.shares:
            return [f"{'related' if 'related' in data.shares else 'unrelated'}-{how}"]
        if len(data.shares) > 1:
            return ["contaminated"]
        found = {
            "many-prompts": data.prompts is None and not adapter,
            "one-prompt": data.prompts == 1 and not adapter,
            "few-images": data.size <= FEW,
            "concept-adapter": adapter,
            "warm-up": training.warm_up > 0,
            "large-batches": training.batch_size * training.accumulation >= LARGE,
        }
        return [kind for kind, it_is in found.items() if it_is]

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training sets."""
        for images in self._images():
            data.get(images, seed)

    def descended(self, tuner: FineTuner) -> FineTuner:
        """What is descended by an attack that changes the loss of the method that it measures itself by."""
        return tuner

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Its steps on its images."""
        data, tuner = target.data.get(self.config.data, seed), self.tuner()
        if tuner.beside is not None:
            tuner.preserve(target.data.get(tuner.beside, seed))
        yield from self.adapted(target, data, self.descended(tuner), seed, measured=tuner)

    def asked(self, target: Target, tuner: FineTuner) -> Prompts | None:
        """As the policy writes them, unless the concept is what was learnt."""
        return super().asked(target, tuner) if "concept" in self.config.data.shares else None
