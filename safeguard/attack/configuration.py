"""One way to fine-tune, as a whole: what is seen, which method, how it runs; a grid lists some, a search draws them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from pydantic import PositiveInt, model_validator

from safeguard.attack.base import Attempt
from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Training
from safeguard.policy.schema import FineTuningMethod
from safeguard.wording import plural


class Configuration(MethodConfig):
    """As a grid lists it, and as a search writes down what it tried."""

    data: FineTuningData
    """What is fine-tuned on."""
    method: FineTuningMethod = FineTuningMethod(name="full")
    """Fine-tuning method with its settings."""
    training: Training
    """How it runs."""
    stop: PositiveInt | None = None
    """Steps after which it is looked at; none: all of them."""

    @model_validator(mode="after")
    def _stops_in_time(self) -> Configuration:
        if self.stop is not None and self.stop > self.training.steps:
            raise ValueError(f"a stop after {self.stop} steps lies beyond the {self.training.steps} of the training")
        return self

    @property
    def budget(self) -> int:
        """Steps after which it is looked at."""
        return self.stop or self.training.steps

    @property
    def words(self) -> str:
        """``full, 200 steps, 0.0002, sgd, constant, batch 4, 20 images of concept, 1 prompt``."""
        training, counts = self.training, self.data.counts()
        settings = [f"{name} {value}" for name, value in self.method.settings.items()]
        images = [f"{plural(count, 'image')} of {source}" for source, count in counts.items()]
        prompts = "all prompts" if self.data.prompts is None else plural(self.data.prompts, "prompt")
        warm_up = [f"warm-up {training.warm_up}"] if training.warm_up else []
        batch = [f"batch {training.batch_size}"]
        batch += [f"{training.accumulation} accumulated"] if training.accumulation > 1 else []
        rate = [f"{training.learning_rate:.2g}", training.optimizer, training.schedule]
        steps = [plural(training.steps, "step") if self.stop is None else f"{self.stop} of {training.steps} steps"]
        return ", ".join([self.method.name, *settings, *steps, *rate, *warm_up, *batch, *images, prompts])

    @property
    def sets(self) -> list[FineTuningData]:
        """What it learns, and what its method needs beside."""
        return self.fine_tune("", [self.budget]).drawn()

    def fine_tune(self, probe: str, stops: Sequence[int]) -> FineTune:
        """The attack that tries it; its randomness is derived from ``probe``."""
        settings = FineTuneConfig(data=self.data, method=self.method, training=self.training, checkpoints=list(stops))
        return FineTune(settings, probe)

    def along(self, target: Target, seed: int, probe: str, stops: Sequence[int]) -> Generator[Attempt, None, None]:
        """Fine-tune the target, and stop after these steps; it is as it was when the iterator is exhausted or closed.

        Yields:
            Attempts whose effort is the number of steps done.
        """
        with closing(self.fine_tune(probe, stops).run(target, seed)) as attempts:
            yield from (attempt for attempt in attempts if attempt.effort)
