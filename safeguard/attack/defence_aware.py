r"""An attack that knows the objective: it goes around what hardening has prepared; needs images of the concept.

Objectives that look ahead simulate fine-tunes that begin at the released weights theta, on the concept, at full speed:
that is where their trap lies. Reports on safeguards of language models that were meta-learned (arXiv 2412.07097) have
them give way to a learning rate that rises over the first tenth of the steps and falls along a cosine, and to
fine-tunes on benign data: large first steps are what was trained against, and a small start walks around it. Hence:

* `warm_up_on`: the first steps are on benign images. They carry the weights out of the neighbourhood, and leave the
  optimiser moments by which the first steps on the concept are small.
* `training.warm_up`: the learning rate rises over all steps together; a rise that is longer than the first stage
  reaches into the second. The default's first half is on benign images, its second on the concept.
* `orthogonal_to`: on the concept, each weight tensor's gradient g loses its component along a direction d,

      g' = (|g| / |h|) h,   h = g - (<g, d> / <d, d>) d,   with norms over all tensors,

  where d is the gradient of the loss of retained images at theta, which objectives set against the concept's so that
  relearning hurts what the attacker wants to keep; or theta - theta_base, the way that hardening went. By tensor, since
  gradients of different layers differ by orders of magnitude and one product over all would be that of a few.

The warm-ups are what the reports suggest; the direction is ours, from the objectives' formulas (meta-unlearning, arXiv
2410.12777), and what an optimiser with moments makes of g' is no longer orthogonal to d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from safeguard.attack.stages import Stage, Staged, StagedConfig
from safeguard.attack.target import Base, Target
from safeguard.config import FineTuningData, Source, Training
from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, Run
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive


class DefenceAwareConfig(StagedConfig):
    """Settings of a fine-tune, and how it goes around a defence."""

    data: FineTuningData = FineTuningData(shares={"concept": 1})
    """What is fine-tuned on in the end."""
    warm_up_on: Literal["retain", "related", "none"] = "retain"
    """Whose images the first steps are on."""
    warm_up_steps: PositiveInt = 25
    """How many; ``training.steps`` and the checkpoints count them, too."""
    orthogonal_to: Literal["retain", "base", "none"] = "retain"
    """Which direction gradients on the concept lose: that of retained images, or that to the base model."""
    benign_images: PositiveInt | None = None
    """Of each set of retained or related images; none: 32."""
    training: Training = Training(steps=225, schedule="cosine", warm_up=50)
    """How it runs; its steps are the budget."""
    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [25, 50, 75, 125, 225]
    """Steps after which the concepts are looked for; step 0 always is (the placebo)."""

    @classmethod
    def tiny(cls) -> Self:
        """Two steps beforehand and two on the concept, on three images each."""
        data, training = (
            FineTuningData(shares={"concept": 1}, images=3),
            Training(steps=4, learning_rate=1e-3, batch_size=2),
        )
        return cls(data=data, warm_up_steps=2, benign_images=3, training=training, checkpoints=[2, 4])

    def benign(self, source: Source) -> FineTuningData:
        """A set of benign images."""
        return FineTuningData(shares={source: 1}, images=self.benign_images)

    def course(self) -> list[Stage]:
        """Benign images first, unless declared otherwise."""
        if self.warm_up_on == "none":
            return [Stage(data=self.data, steps=self.training.steps)]
        if self.warm_up_steps >= self.training.steps:
            raise ValueError(f"a warm-up of {self.warm_up_steps} steps leaves nothing of {self.training.steps}")
        left = self.training.steps - self.warm_up_steps
        return [Stage(data=self.benign(self.warm_up_on), steps=self.warm_up_steps), Stage(data=self.data, steps=left)]


class DefenceAware(Staged[DefenceAwareConfig]):
    """Fine-tune around a defence, and stop at every checkpoint.

    Raises:
        UsageFault: the base is to give the direction of what it does not have.
    """

    Config: ClassVar = DefenceAwareConfig

    def __init__(self, config: DefenceAwareConfig, probe: str) -> None:
        super().__init__(config, probe)
        if config.orthogonal_to == "base" and self.tuner().adds_parameters:
            raise UsageFault(
                f"the base has no weights of what {config.method.name} adds, so they give no direction",
                fix="take orthogonal_to: retain, or a method that trains the weights themselves",
            )

    def learnt(self) -> list[FineTuningData]:
        """Those of its stages, and the images whose gradient is the direction."""
        found, retained = super().learnt(), self.config.benign("retain")
        return [*found, retained] if self.config.orthogonal_to == "retain" and retained not in found else found

    def cost(self) -> Cost:
        """That of its stages, and one pass for the direction."""
        cost, direction = super().cost(), self.config.benign("retain").size
        calls = cost.network_calls + (direction if self.config.orthogonal_to == "retain" else 0)
        return cost.model_copy(update={"network_calls": calls})

    def needs(self) -> Needs:
        """As a fine-tune; the base model if its weights give the direction."""
        return super().needs().model_copy(update={"base_model": self.config.orthogonal_to == "base"})

    def covers(self) -> list[str]:
        """An attack that knows the defence, if it goes around it in any way."""
        config = self.config
        around = config.warm_up_on != "none" or config.orthogonal_to != "none"
        return ["defence-aware"] if around and "concept" in config.data.shares else []

    def begun(self, target: Target, tuner: FineTuner, sets: Mapping[str, LatentSet], seed: int) -> Run:
        """Its direction is found before the first step.

        Raises:
            UsageFault: the base model gives the direction and is not at hand.
        """
        config, own = self.config, derive(target.exam, self.probe, seed)
        first = sets[config.course()[0].data.model_dump_json()]
        run = OrthogonalRun(target.model, first, tuner, config.training, seed=own)
        run.spared = first if config.warm_up_on != "none" else None
        if config.orthogonal_to == "retain":
            retained = sets[config.benign("retain").model_dump_json()]
            run.direction = gradient(run, retained, derive(own, "direction"))
        elif config.orthogonal_to == "base":
            run.direction = way_from(target.base, run)
        return run


class OrthogonalRun(Run):
    """A fine-tune whose gradients lose a direction.

    Attributes:
        direction: one tensor per parameter; none: they lose nothing.
        spared: images on which they lose nothing.
    """

    direction: Sequence[Tensor] | None = None
    spared: LatentSet | None = None

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """Those of a step, without the direction and as long as they were."""
        loss, gradients = super().gradients()
        if self.direction is None or self.data is self.spared:
            return loss, gradients
        return loss, orthogonalised(gradients, self.direction)


def orthogonalised(gradients: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """Each gradient without its component along its direction, and all of them together as long as before."""
    left = []
    for gradient, along in zip(gradients, direction, strict=True):
        length = along.pow(2).sum()
        share = torch.where(length > 0, (gradient * along).sum() / length, torch.zeros_like(length))
        left.append(gradient - share * along)
    before, after = (torch.stack([value.norm() for value in values]).norm() for values in (gradients, left))
    factor = torch.where(after > 0, before / after, torch.ones_like(after))
    return [factor * value for value in left]


@torch.enable_grad()
def gradient(run: Run, data: LatentSet, seed: int) -> list[Tensor]:
    """Of the loss of all images of a set, at the present weights, with respect to what a fine-tune trains."""
    generator = torch.Generator().manual_seed(seed)

    def work() -> list[Tensor]:
        batch = data.rows(torch.arange(len(data)), generator)
        named = replace(batch, captions=run.tuner.captions(batch.captions, generator))
        with run.model.execution.within_precision(run.training.precision):
            loss = run.tuner.loss(run.model, named, generator)
        return list(torch.autograd.grad(loss, run.parameters, allow_unused=True, materialize_grads=True))

    return run.model.execution.within_memory(work, generator)


@torch.no_grad()
def way_from(base: Base | None, run: Run) -> list[Tensor]:
    """theta - theta_base of what a fine-tune trains; zeros where the base has nothing of that name and shape.

    Raises:
        UsageFault: the base model is not at hand.
    """
    if base is None:
        raise UsageFault("the base model is not at hand", fix="run the attack through a certification or a probe")
    names = {id(value): name for name, value in run.model.named_parameters().items()}
    others: dict[str, Tensor] = {}
    for part in sorted({names[id(value)].partition(".")[0] for value in run.parameters}):
        others |= {f"{part}.{name}": value for name, value in base.component(part).named_parameters()}
    found = []
    for value in run.parameters:
        other = others.get(names[id(value)], value)
        found.append(value - other.to(value) if other.shape == value.shape else torch.zeros_like(value))
    return found
