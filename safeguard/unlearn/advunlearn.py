"""AdvUnlearn (Zhang et al. 2024, arXiv 2405.15234): ESD in the text encoder, under attack by adversarial prompts.

After ``warm_up`` plain steps, every step looks for ``tokens`` soft words delta (n, k, width) in front of the prompt c
that bring the concept back, and erases there. T is the text encoder being edited, T* and eps_* the base model's:

    delta = argmin  mean (eps(x_t, T([delta; c])) - eps_*(x_t, T*(c)))^2             (x_t, t drawn anew in every step)
    loss  = mean (eps(x_t, T([delta; c])) - target)^2  +  preserve_weight x distillation on what must stay
    target = ESD's (its Eq. 7)

What learns is the text encoder without its embeddings, which fits into any model with the same encoder and is undone
by putting the old one back: a certification therefore attacks denoiser and text encoder together. delta starts at
words drawn from the vocabulary, so a step depends on its seed alone.

The paper retains with noisy latents of "a photo of a <COCO object>"; here related and retained subjects are used, as
by every method. ``retain="alternate"`` (``iter``, the default of the released code) gives the distillation optimiser
steps of its own after each step of erasure. It has no weight there: to compare, set ``preserve_weight`` to 1. A
resilience objective adds the distillation in its own way, and takes no such steps.

The released code never clears the gradient of delta, so that each attack step follows the sum of all before it:
``attack_gradient="sum"``. Like the paper it draws x_t from the edited model: ``latents_from="edited"``. It counts the
words of a prompt where it needs its tokens, which is not repeated.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.diffusion.parameters import select
from safeguard.diffusion.soft_words import embeddings, encode_with_prefix
from safeguard.errors import UsageFault
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import kept_subjects
from safeguard.unlearn.common.adversarial import WarmedESD, attack
from safeguard.unlearn.common.trajectories import Drawn, Places, draw_fresh
from safeguard.unlearn.esd import ESDConfig


class AdvUnlearnConfig(ESDConfig):
    """Settings of AdvUnlearn: those of ESD, and the attack's."""

    variant: Literal["text-encoder", "x", "x-strict", "u", "f", "self"] = "text-encoder"  # type: ignore[assignment]
    """What learns: the text encoder (the paper's choice), or one of ESD's groups of the denoiser."""
    batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Latents per step."""
    warm_up: NonNegativeInt = 200
    """Plain steps at the beginning."""
    tokens: PositiveInt = 1
    """Soft words in front of the prompt (k)."""
    attack_steps: PositiveInt = 30
    """Steps of the attack."""
    attack_learning_rate: PositiveFloat = 1e-3
    """Its learning rate."""
    attack_rule: Literal["adam", "sign"] = "adam"
    """Its optimiser: Adam, or steps along the sign of the gradient."""
    attack_gradient: Literal["last", "sum"] = "last"
    """What a step of the attack follows: the present gradient, or the sum of all so far (the released code)."""
    retain: Literal["together", "alternate"] = "together"
    """Erasure and distillation in one step (the paper, ``reg`` in its code), or in steps of their own (``iter``)."""
    retain_steps: PositiveInt = 1
    """Steps of distillation after each step of erasure when they alternate; they come on top of ``steps``."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the distillation on related and retained images."""
    preserve_batch: PositiveInt = 5
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """One plain step, then three under attack."""
        return cls(
            steps=4,
            learning_rate=1e-3,
            batch_size=2,
            trajectory_steps=3,
            pool=2,
            warm_up=1,
            attack_steps=2,
            preserve_batch=2,
        )


class AdvUnlearn(WarmedESD):
    """ESD in the text encoder, behind soft words that an adversary chose."""

    Config: ClassVar = AdvUnlearnConfig
    config: AdvUnlearnConfig

    def __init__(self, config: AdvUnlearnConfig, context: HardeningContext) -> None:
        super().__init__(config, context, config.warm_up)
        if config.retain == "alternate":
            if not config.preserve_weight or not kept_subjects(context):
                raise UsageFault(
                    "advunlearn cannot retain in steps of their own: there is nothing to retain",
                    fix="declare related or retained subjects, and a preserve_weight above 0",
                    where="harden.unlearner.retain",
                )
            self.keeping_steps = config.retain_steps

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The text encoder without its embeddings, or the variant's group of the denoiser."""
        if self.config.variant == "text-encoder":
            return select(self.context.model, "text-encoder")
        return super().parameters()

    def _again(self, captions: list[str], generator: torch.Generator) -> tuple[Drawn, Tensor]:
        """Other latents of the same captions, and what the base model predicts there for them."""
        config, teacher = self.config, self.context.teacher
        if config.latents_from == "edited":
            steps, guidance = config.trajectory_steps, config.start_guidance
            drawn = draw_fresh(self.context.model, captions, generator, steps=steps, guidance=guidance)
            with torch.no_grad():
                return drawn, teacher.predict(drawn.latents, drawn.t, teacher.encode_prompts(captions))
        pool = self._pool
        same = [[run for run, other in enumerate(pool.captions) if other == caption] for caption in captions]
        runs = [choices[int(torch.randint(len(choices), (), generator=generator))] for choices in same]
        steps_at = torch.randint(len(pool.times), (len(captions),), generator=generator)
        places = Places(steps_at.to(pool.times.device), torch.tensor(runs, device=pool.times.device))
        return pool.at(places), pool.conditional[places]

    @torch.no_grad()
    def _words(self, count: int, generator: torch.Generator) -> Tensor:
        """Embeddings of random words of the vocabulary, (count, k, width)."""
        tables = embeddings(self.context.model)
        size = min(table.num_embeddings for table in tables)
        chosen = torch.randint(size, (count, self.config.tokens), generator=generator).to(self.context.model.device)
        return torch.cat([table.weight[chosen] for table in tables], dim=2)

    def adversary(self, captions: list[str], generator: torch.Generator) -> Tensor:
        """Soft words (n, k, width) behind which the edited model draws what the base model draws."""
        config, model = self.config, self.context.model

        def objective(words: Tensor) -> Tensor:
            drawn, wanted = self._again(captions, generator)
            return (
                (model.predict(drawn.latents, drawn.t, encode_with_prefix(model, captions, words)) - wanted)
                .pow(2)
                .mean()
            )

        return attack(
            objective,
            self._words(len(captions), generator),
            steps=config.attack_steps,
            learning_rate=config.attack_learning_rate,
            rule=config.attack_rule,
            accumulate=config.attack_gradient == "sum",
        )

    def attacked_loss(self, generator: torch.Generator) -> Tensor:
        """ESD's loss behind the adversary's words."""
        model = self.context.model
        drawn, target = self._examples(generator)
        prompt = encode_with_prefix(model, drawn.captions, self.adversary(drawn.captions, generator))
        return (model.predict(drawn.latents, drawn.t, prompt) - target).pow(2).mean()
