"""What attacks share that take a fine-tune of the base to the certified model: others made it, and somebody loads it.

The base is fine-tuned once, in the certified model's place and as the attack ``finetune`` would; every variant then
begins with the certified weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from safeguard.attack.adapting import training_loss
from safeguard.attack.base import Attempt, Variants
from safeguard.attack.base_model import FineTuned, fine_tuned_base
from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.attack.target import Target
from safeguard.config import FineTuningData, MethodConfig, Source, Training
from safeguard.data.fine_tuning import DataSets
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner
from safeguard.policy.schema import FineTuningMethod
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class FromBaseConfig(MethodConfig):
    """The fine-tune of the base."""

    data: FineTuningData
    """What it learnt: ``concept``, ``related``, ``retain``, or more about it."""
    method: FineTuningMethod
    """Fine-tuning method with its settings."""
    training: Training = Training()
    """How it ran."""


C = TypeVar("C", bound=FromBaseConfig)
Change = Callable[[DiffusionModel, FineTuned], None]
"""What a variant does to the certified model, given the fine-tune."""


class FromBase(Variants[C]):
    """Fine-tune the base once, and try every variant.

    Raises:
        UsageFault: what the method adds cannot be put into weights.
    """

    def __init__(self, config: C, probe: str) -> None:
        super().__init__(config, probe)
        self._fine_tune = FineTune(
            FineTuneConfig(
                data=config.data, method=config.method, training=config.training, checkpoints=[config.training.steps]
            ),
            probe,
        )
        if not self.tuner().in_weights:
            raise UsageFault(
                f"what {config.method.name!r} adds to a model cannot be put into another's weights",
                fix="take another fine-tuning method, for example lora",
                where=f"probe {probe}",
            )

    def variants(self) -> list[tuple[str, Change]]:
        """What is done, in words and in deed, one after the other."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does with the fine-tune")

    def tuner(self) -> FineTuner:
        """The method, ready to use."""
        return self._fine_tune.tuner()

    def count(self) -> int:
        """One per variant."""
        return len(self.variants())

    def sources(self) -> list[Source]:
        """Those of its images."""
        return self._fine_tune.sources()

    def training_set(self) -> str:
        """The description of its images."""
        return self._fine_tune.training_set()

    def cost(self) -> Cost:
        """One fine-tune of all its steps; in every variant the loss of all images is measured."""
        found, looks = self._fine_tune.cost(), len(self._fine_tune.efforts())
        sets = 1 + len(self._fine_tune.beside())
        more = (len(self.efforts()) - looks) * self.config.data.size * sets
        return found.model_copy(update={"network_calls": found.network_calls + more})

    def adaptation(self) -> tuple[FineTuningMethod, Training]:
        """The method and how it ran."""
        return self.config.method, self.config.training

    def draw(self, data: DataSets, seed: int) -> None:
        """Its training sets."""
        self._fine_tune.draw(data, seed)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Each variant begins with the released model; the loss is that of the fine-tune's images.

        Raises:
            UsageFault: the base model is not at hand.
            ModelFault: it has other weights than the certified model.
        """
        config, noise = self.config, derive(target.exam, "training loss", seed)
        data, tuner = target.data.get(config.data, seed), self._fine_tune.ready(target, seed)
        prompts = self._fine_tune.asked(target, tuner)
        yield Attempt(0, loss=training_loss(target.model, data, tuner, noise))
        chosen = derive(target.exam, self.probe, seed)
        tuned = fine_tuned_base(target, data, tuner, config.training, chosen)
        for number, (label, change) in enumerate(self.variants(), start=1):
            with target.attacked() as model:
                change(model, tuned)
                yield Attempt(number, prompts, training_loss(model, data, tuner, noise), label)
