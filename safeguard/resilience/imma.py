"""IMMA (Zheng & Yeh 2024, arXiv 2311.18815): make the erased model a bad place to start a fine-tune from.

    max_theta  L_A(theta, phi*)   where   phi* = argmin_phi L_A(theta, phi)

L_A is the denoising loss on images of the concepts, phi what a fine-tuning method trains (low-rank updates, or all
weights) and theta the attention weights. Both levels have one loss, so at the lower optimum its grad along phi is zero
and the gradient through phi* vanishes: the gradient along theta at (theta, phi*) is all there is (envelope theorem),
and no second derivative is needed. A step of ``bilevel`` is

    phi  <- ``training.steps`` of AdamW from a fresh start: the method's own, which for all weights is theta
    grad  = -grad_theta L_A(theta, phi)

and everything but theta is put back. The released code alternates on one set of weights instead: phi is never reset,
its optimiser goes on, and where theta is part of phi the adaptation stays in theta. It keeps the attention weights
alone, so what other weights learnt is in their way while theta is trained, and then dropped. ``variant="released"`` is
that (one step here is one adaptation and one ascent there, so its 1000 steps are 500).

IMMA erases nothing: the base unlearner runs first. It has no term that keeps the rest either; ``erase_weight`` and
``preserve_weight`` add the base unlearner's loss and distillation on the images of related and retained subjects (0 is
the paper). The ascended loss is bounded as in gradient ascent, far above the losses of a working model. The ascent is
Adam's, with the code's clipping and without its weight decay, which moves a weight by a 10^-7th per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from safeguard.config import FineTuningData, MethodConfig, Training
from safeguard.diffusion.model import Weights
from safeguard.diffusion.parameters import exposed
from safeguard.errors import UsageFault
from safeguard.finetune.base import Run
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.resilience.base import Facts, Objective
from safeguard.resilience.second_order.solvers import Vector, combine, gradients, norm, taking_gradients
from safeguard.resilience.simulation import Images, checkpoints
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import bounded_ascent, preservation


class Adaptation(Training):
    """The adaptation before an ascent."""

    steps: PositiveInt = 10
    """Optimiser steps."""
    learning_rate: PositiveFloat = 1e-4
    """Learning rate; the code takes 5e-6 for DreamBooth."""


class IMMAConfig(MethodConfig):
    """Settings of IMMA; numbers are those of the released code for relearning an erased concept."""

    variant: Literal["bilevel", "released"] = "bilevel"
    """Every adaptation from a fresh start, or one that goes on for the whole run, in the weights themselves."""
    steps: PositiveInt = 500
    """Outer steps: ascents."""
    learning_rate: PositiveFloat = 1e-5
    """Adam's learning rate of the ascent; the code takes 2e-5 against DreamBooth."""
    parameters: str = "attention"
    """Parameter group theta (``safeguard.diffusion.parameters.GROUPS``)."""
    warm_start: bool = True
    """Run the unlearner alone first (always so for closed forms)."""
    erase_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the unlearner's own loss, with its preservation."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""
    method: FineTuningMethod = FineTuningMethod(name="lora")
    """The adaptation to withstand."""
    data: FineTuningData = FineTuningData(shares={"concept": 1.0})
    """What it sees."""
    training: Adaptation = Adaptation()
    """How it runs before each ascent, which has batches of its ``batch_size``; ``released`` takes one step, as the
    code does, unless ``steps`` are given."""
    evaluations: PositiveInt = 1
    """Where along every adaptation L_A is ascended; 1: at its end, as in the paper. Others are not optima, so their
    grads are first order."""
    bound: PositiveFloat = 1.0
    """Denoising loss beyond which an ascended loss no longer counts."""

    @classmethod
    def tiny(cls) -> Self:
        """Four ascents, each after two steps."""
        return cls(steps=4, learning_rate=1e-3, training=Adaptation(steps=2, batch_size=2))

    @model_validator(mode="before")
    @classmethod
    def _one_step(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("variant") == "released":
            training = given.get("training", {})
            if isinstance(training, Mapping):
                return {**given, "training": {"steps": 1, **training}}
        return given

    @model_validator(mode="after")
    def _goes_on(self) -> IMMAConfig:
        if self.variant == "released" and self.training.optimizer not in ("adam", "adamw"):
            raise ValueError("an adaptation that goes on keeps Adam's moments; take adam or adamw, or bilevel")
        return self


class IMMA(Objective):
    """Ascent on the loss that an adaptation reaches."""

    Config: ClassVar = IMMAConfig

    def __init__(self, config: IMMAConfig, context: HardeningContext, unlearner: Unlearner) -> None:
        if not (config.warm_start or config.erase_weight or unlearner.closed_form):
            raise UsageFault(
                "imma itself erases nothing", fix="leave warm_start on, or give erase_weight", where="harden.resilience"
            )
        self.config = config
        self.context = context
        self.unlearner = unlearner
        self.steps = config.steps
        self.learning_rate = config.learning_rate
        self._tuner = finetuners.make(config.method)
        self._images = Images(context)
        for data in (config.data, self._tuner.beside):
            if data is not None:
                self._images.check(data)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameter group theta, with other parts that the unlearner changes."""
        return exposed(self.context.model, self.config.parameters)

    def state(self) -> dict[str, Tensor]:
        """What an adaptation that is never reset keeps."""
        return self._kept if self.config.variant == "released" else {}

    def compute_gradients(self, step: int) -> Facts:
        """Adapt, ascend, and put back; ``released`` leaves what the adaptation did to theta."""
        config, context = self.config, self.context
        values = list(self.parameters().values())
        total, facts = self._present(values, torch.Generator().manual_seed(derive(context.seed, "outer", step)))
        generator = torch.Generator().manual_seed(derive(context.seed, "ascent", step))
        ascent, losses = [torch.zeros_like(value) for value in values], list[float]()
        with self._adaptation(step, values) as run:
            evaluated = checkpoints(run.training.steps, config.evaluations)
            for done in range(1, run.training.steps + 1):
                run.step()
                if done in evaluated:
                    grad, loss = self._ascent(values, generator)
                    ascent = combine(ascent, 1 / len(evaluated), grad)
                    losses.append(loss)
        for value, gradient in zip(values, combine(total, 1.0, ascent), strict=True):
            value.grad = gradient
        found = sum(losses) / len(losses)
        return facts | {"fine-tuning loss after inner steps": found, "ascent gradient norm": norm(ascent)}

    def _ascent(self, theta: list[torch.nn.Parameter], generator: torch.Generator) -> tuple[Vector, float]:
        """The gradient that raises L_A where the adaptation is now, and L_A."""
        model, batch = self.context.model, self.context.forget.batch(self.config.training.batch_size, generator)
        with taking_gradients(theta):
            loss = model.denoising_loss(batch.latents, model.encode_prompts(batch.captions), generator)
            return gradients(bounded_ascent(loss, self.config.bound), theta), loss.item()

    def _present(self, values: list[torch.nn.Parameter], generator: torch.Generator) -> tuple[Vector, Facts]:
        """The gradient at the present weights of what is descended beside the ascent."""
        config = self.config
        losses: dict[str, Tensor] = {}
        if config.erase_weight and not self.unlearner.closed_form:
            losses["erasure loss"] = config.erase_weight * self.unlearner.loss(generator)
            kept = self.unlearner.preservation(generator)
            if kept is not None:
                losses["preservation loss"] = config.erase_weight * kept
        distilled = preservation(self.context, config.preserve_weight, config.preserve_batch, generator)
        if distilled is not None:
            losses["distillation loss"] = distilled
        facts = {name: loss.item() for name, loss in losses.items()}
        if not losses:
            return [torch.zeros_like(value) for value in values], facts
        return gradients(torch.stack(list(losses.values())).sum(), values), facts

    @contextmanager
    def _adaptation(self, step: int, theta: list[torch.nn.Parameter]) -> Iterator[Run]:
        """The adaptation, about to begin; after the block the model is as it was."""
        config, model = self.config, self.context.model
        adaptation = _Lasting(self._kept, theta) if config.variant == "released" else None
        seed = derive(self.context.seed, "inner", step)
        generator = torch.Generator().manual_seed(seed)
        data = self._images.get(config.data, seed, generator)
        self._images.hand_over(self._tuner, seed, generator)
        with Weights(model.named_parameters()) as before:
            try:
                run = Run(model, data, self._tuner, config.training, seed=seed)
                if adaptation is not None:
                    adaptation.take_up(run)
                yield run
                if adaptation is not None:
                    adaptation.keep()
                    before.leave(theta)
            finally:
                self._tuner.detach(model)

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        """The adaptation before its first step."""
        theta = {id(value) for value in self.parameters().values()}  # before an adapter has names there
        phi = self._tuner.attach(self.context.model, derive(self.context.seed, "imma"))
        kept: dict[str, Tensor] = {}
        for i, value in enumerate(phi):
            if id(value) not in theta:
                kept[f"phi.{i}.value"] = value.detach().clone()
            kept[f"phi.{i}.step"] = torch.zeros((), device=value.device)
            kept[f"phi.{i}.exp_avg"] = torch.zeros_like(value.detach())
            kept[f"phi.{i}.exp_avg_sq"] = torch.zeros_like(value.detach())
        self._tuner.detach(self.context.model)
        return kept


class _Lasting:
    """A fine-tune that goes on where it was in the step before.

    Args:
        kept: values of phi that are no part of theta, and AdamW's moments of all, by position in phi.
        theta: what is trained outside, where its values are the last ones.
    """

    def __init__(self, kept: dict[str, Tensor], theta: list[torch.nn.Parameter]) -> None:
        self._kept = kept
        self._theta = {id(value) for value in theta}
        self._now: dict[str, Tensor] = {}

    @torch.no_grad()
    def take_up(self, run: Run) -> None:
        """Give phi and the moments to a fine-tune that is about to begin."""
        for i, value in enumerate(run.parameters):
            if id(value) not in self._theta:
                value.copy_(self._kept[f"phi.{i}.value"])
                self._now[f"phi.{i}.value"] = value
            moments = {name: self._kept[f"phi.{i}.{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")}
            run.optimizer.state[value] = moments
            self._now |= {f"phi.{i}.{name}": moment for name, moment in moments.items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Where it is now is where it goes on."""
        for name, value in self._now.items():
            self._kept[name].copy_(value)
