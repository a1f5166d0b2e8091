"""Merged with a fine-tune of the base, as checkpoint mergers do: add difference and weighted sum; needs the base.

theta_B is a fine-tune of the *base* theta_0 on benign images, theta_h the certified model.

* add difference: theta_h + w (theta_B - theta_0);
* weighted sum: (1 - w) theta_h + w theta_B, for w <= 1/2: beyond it the result is more the other model than this one.

A merger computes no gradients and takes no steps: others trained theta_B, and whoever has the base finds its fine-tunes
beside it, so that weights and the base are all it takes. What theta_B does not have (stored erasers) stays.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from safeguard.attack.adapting import training_loss
from safeguard.attack.base import Attack, Attempt
from safeguard.attack.base_model import add, cost, fine_tuned_base, towards
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source, Training
from safeguard.data.fine_tuning import DataSets
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive
from safeguard.wording import VARIANTS


class MergeConfig(MethodConfig):
    """The other model, and the weights it gets."""

    data: FineTuningData = FineTuningData(shares={"retain": 1})
    """What theta_B learnt: ``related``, ``retain``, or both."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """How: a fine-tuning method with its settings, whose adapters are put into theta_B's weights."""
    training: Training = Training()
    """How it ran."""
    sums: list[Annotated[float, Field(gt=0, le=0.5)]] = [0.3, 0.5]
    """w of the weighted sums, one variant each."""
    differences: list[Annotated[float, Field(gt=0, le=1)]] = [0.3, 0.5, 1.0]
    """w of the added differences, one variant each."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps on three images."""
        training = Training(steps=2, learning_rate=1e-3, batch_size=2)
        return cls(data=FineTuningData(shares={"retain": 1}, images=3), training=training)

    @model_validator(mode="after")
    def _benign(self) -> MergeConfig:
        if "concept" in self.data.shares:
            raise ValueError("mergers take a benign fine-tune: on images of 'related' or 'retain', not of 'concept'")
        if not self.sums and not self.differences:
            raise ValueError("give at least one weight, in 'sums' or 'differences'")
        return self


class Merge(Attack[MergeConfig]):
    """Fine-tune the base once, and merge it with every weight."""

    Config: ClassVar = MergeConfig
    axis: ClassVar = VARIANTS

    def efforts(self) -> list[int]:
        """One number per variant, from 1: sums, then differences."""
        return list(range(len(self.config.sums) + len(self.config.differences) + 1))

    def sources(self) -> list[Source]:
        """Those of theta_B's images."""
        return list(self.config.data.shares)

    def training_set(self) -> str:
        """The description of its images."""
        return self.config.data.model_dump_json()

    def cost(self) -> Cost:
        """One fine-tune; in every variant the loss of all images is measured."""
        return cost(self.config.data, self.config.training, len(self.efforts()))

    def needs(self) -> Needs:
        """Both models."""
        return Needs(weights=True, base_model=True)

    def covers(self) -> list[str]:
        """Merging, if both ways go as far as they may."""
        return ["merging"] if 0.5 in self.config.sums and 1.0 in self.config.differences else []

    def adaptation(self) -> tuple[FineTuningMethod, Training]:
        """The method and how it runs."""
        return self.config.method, self.config.training

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training set."""
        data.get(self.config.data, seed)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each variant begins with the released model; the loss is that of theta_B's images.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: it has other weights than the certified model.
        """
        config = self.config
        data, tuner = target.data.get(config.data, seed), finetuners.make(config.method)
        noise = derive(target.exam, "training loss", seed)
        yield Attempt(0, loss=training_loss(target.model, data, tuner, noise))
        chosen = derive(target.exam, self.probe, seed)
        base, difference = fine_tuned_base(target, data, tuner, config.training, chosen)
        variants = [("weighted sum", w) for w in config.sums] + [("add difference", w) for w in config.differences]
        for number, (way, w) in enumerate(variants, start=1):
            with target.attacked() as model:
                if way == "weighted sum":
                    towards(model, base, w)
                add(model, difference, w)
                loss = training_loss(model, data, tuner, noise)
                yield Attempt(number, loss=loss, label=f"{way} with a fine-tune of the base, w = {w:g}")
