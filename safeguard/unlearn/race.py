"""RACE, robust adversarial concept erasure (Kim, Min and Yang 2024, arXiv 2405.16341).

ESD under attack. After ``warm_up`` plain steps of ESD (the paper starts from a finished ESD model), every step looks
for text states near the concept's that bring it back, and erases there: with the text states c (n, tokens, width),

    delta = argmin  mean (eps_theta(x_t, c + delta) - z_T)^2    over  |delta|_inf <= epsilon
    loss  = mean (eps_theta(x_t, c + delta) - target)^2                                        target: ESD's (its Eq. 7)

by projected gradient descent: a uniform start, ``attack_steps`` signed steps of epsilon / 4, after each of which c +
delta is cut to the epsilon box and to the range of c. z_T (n, c, h, w) is the noise that the run of x_t started from,
which stands for the true noise of x_t. It equals that at the beginning of a run only; ``attack_target="prediction"``
asks for what the base model predicts for the concept instead. Paper and code draw x_t from the model as it is being
edited; here that (``latents_from="edited"``) goes with ``attack_target="prediction"`` only.

Where the released code departs from its options (its number of attack steps is always 10), the options count here. Its
optional penalty is ``lasso``: lasso sum_i mean |theta_i - theta*_i|, 0.1 there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from safeguard.diffusion.conditioning import Conditioning
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.adversarial import WarmedESD, attack
from safeguard.unlearn.common.trajectories import Drawn
from safeguard.unlearn.esd import ESDConfig


class RACEConfig(ESDConfig):
    """Settings of RACE: those of ESD, and the attack's."""

    steps: PositiveInt = 2000
    """Optimiser steps, the plain ones included."""
    warm_up: NonNegativeInt = 1000
    """Plain steps of ESD at the beginning."""
    epsilon: PositiveFloat = 0.1
    """Largest change of any number of the text states."""
    attack_steps: PositiveInt = 10
    """Signed steps of a quarter of epsilon."""
    attack_target: Literal["initial-noise", "prediction"] = "initial-noise"
    """What the attack wants predicted: the noise the run started from (the paper), or the base model's prediction."""
    lasso: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the L1 distance to the base weights, averaged in every tensor."""

    @model_validator(mode="after")
    def _initial_noise_is_known(self) -> RACEConfig:
        if self.attack_target == "initial-noise" and self.latents_from == "edited":
            raise ValueError("latents_from 'edited' keeps no initial noise; use attack_target 'prediction'")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """One plain step, then three under attack."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2, trajectory_steps=3, pool=2, warm_up=1, attack_steps=2)


class RACE(WarmedESD):
    """ESD at text states that an adversary chose near the concept's."""

    Config: ClassVar = RACEConfig
    config: RACEConfig

    def __init__(self, config: RACEConfig, context: HardeningContext) -> None:
        super().__init__(config, context, config.warm_up)

    def _attacked_examples(self, generator: torch.Generator) -> tuple[Drawn, Tensor, Tensor]:
        """Latents, ESD's target, and what the attack wants to be predicted."""
        config, teacher = self.config, self.context.teacher
        if config.attack_target == "initial-noise":
            places = self._pool.pick(config.batch_size, generator)
            return self._pool.at(places), self._pool_targets[places], self._pool.latents[0, places.runs]
        drawn, target = self._examples(generator)
        with torch.no_grad():
            wanted = teacher.predict_noise(drawn.latents, drawn.t, teacher.encode_prompts(drawn.captions))
        return drawn, target, wanted

    def adversary(self, drawn: Drawn, wanted: Tensor, generator: torch.Generator) -> Conditioning:
        """Text states within the box around the captions' own from which the edited model predicts ``wanted``.

        Args:
            drawn: latents, timesteps and captions.
            wanted: noise, (n, c, h, w).
        """
        config, model = self.config, self.context.model
        clean = model.encode_prompts(drawn.captions)
        states = clean.states.detach()
        lowest, highest = states.amin((1, 2), keepdim=True), states.amax((1, 2), keepdim=True)
        low, high = (states - config.epsilon).maximum(lowest), (states + config.epsilon).minimum(highest)

        def objective(x: Tensor) -> Tensor:
            return (model.predict_noise(drawn.latents, drawn.t, replace(clean, states=x)) - wanted).pow(2).mean()

        start = states + config.epsilon * (2 * torch.rand(states.shape, generator=generator).to(states) - 1)
        found = attack(
            objective,
            start,
            steps=config.attack_steps,
            learning_rate=config.epsilon / 4,
            rule="sign",
            project=lambda x: x.clamp(low, high),
        )
        return replace(clean, states=found)

    def attacked_loss(self, generator: torch.Generator) -> Tensor:
        """ESD's loss at the adversary's text states."""
        drawn, target, wanted = self._attacked_examples(generator)
        found = self.adversary(drawn, wanted, generator)
        return (self.context.model.predict(drawn.latents, drawn.t, found) - target).pow(2).mean()

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """Distillation on related and retained images, and the L1 distance to the base weights."""
        keep, weight = super().preservation(generator), self.config.lasso
        if not weight:
            return keep
        base = self.context.teacher.named_parameters()
        distance = torch.stack([(value - base[name]).abs().mean() for name, value in self.parameters().items()]).sum()
        return weight * distance if keep is None else keep + weight * distance
