"""CA, concept ablation (Kumari et al. 2023, arXiv 2303.13516).

The image distribution of a target prompt c is to become that of its anchor c* ("a cat" for "Grumpy Cat"). With noised
images x_t (n, c, h, w) of the anchor, drawn by the base model:

    model:  loss = mean (eps_theta(x_t, c) - sg[eps_theta(x_t, c*)])^2                               (the paper's best)
    noise:  loss = mean (eps_theta(x_t, c) - eps)^2                        (target prompts paired with anchor images)

plus ``prior_weight`` times the plain denoising loss on the anchor's images under their own prompts, which a target that
contains its anchor's words needs. sg stops the gradient: the anchor's answer is that of the weights being edited, which
spares a second model; ``anchor_from="frozen"`` asks the base model instead.

The policy's concepts give the pairs: every prompt with its anchor. An empty anchor is the empty prompt, which makes the
target unconditional; a near, harmless subject is better. The paper's learning rate of 2e-6 is per image of a batch of
8, hence 1.6e-5 here. Left out: the released code's random resizing of the anchor's images, its weight decay, which at
this rate shrinks a weight by 2e-5 over the run.

``parameters="token-embedding"`` is the paper's third group: all that learns is the embeddings of the words that a
prompt has and its anchor lacks, in every text encoder; the denoiser stays as it is. The model then reads the concept's
words as the anchor's, and other words for it as ever. Such an erasure is undone by putting the old table back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet, generate
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import erase_pairs
from safeguard.unlearn.common.descent import Descent
from safeguard.unlearn.common.text_states import encoders, subject, token_ids
from safeguard.unlearn.common.trajectories import draw_captions


class ConceptAblationConfig(MethodConfig):
    """Settings of concept ablation."""

    variant: Literal["model", "noise"] = "model"
    """What the target prompt should predict: the model's answer for the anchor, or the noise in the anchor's image."""
    anchor_from: Literal["edited", "frozen"] = "edited"
    """Whose answer for the anchor: that of the weights being edited (the paper), or the base model's."""
    parameters: str = "cross-attention-kv"
    """Parameter group that learns (``safeguard.diffusion.parameters.GROUPS``); the paper also has attention, full, and
    token-embedding."""
    steps: PositiveInt = 100
    """Optimiser steps; the paper takes twice as many for the noise variant."""
    learning_rate: PositiveFloat = 1.6e-5
    """Adam's learning rate."""
    batch_size: PositiveInt = 8
    """Anchor images per step."""
    images: PositiveInt | None = None
    """Anchor images the base model draws; none: as many as the policy says for every other set. The paper has 1000."""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the denoising loss on the anchor's images under their own prompts."""
    preserve_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distillation on related and retained images; 0 is the paper."""
    preserve_batch: PositiveInt = 8
    """Images per step of that term."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2, images=2, preserve_weight=0.5, preserve_batch=2)


class ConceptAblation(Descent):
    """Concept ablation as a loss to descend."""

    Config: ClassVar = ConceptAblationConfig
    config: ConceptAblationConfig

    def __init__(self, config: ConceptAblationConfig, context: HardeningContext) -> None:
        super().__init__(config, context)
        self._targets: dict[str, list[str]] = {}
        for prompt, anchor in erase_pairs(context):
            self._targets.setdefault(anchor, []).append(prompt)

    @cached_property
    def anchors(self) -> LatentSet:
        """The base model's images of the anchors, as many of each as it has targets."""
        context = self.context
        count = self.config.images or context.policy.harden.images
        prompts = [anchor for _, anchor in erase_pairs(context)]
        with context.progress.task("draw images of the anchors", count) as task:
            return generate(context.teacher, prompts, count, seed=derive(context.seed, "ca"), done=task.update)

    @contextmanager
    def _own_words(self) -> Iterator[None]:
        """Where token embeddings learn, gradients reach none but those of the words to erase."""
        handles = []
        if self.config.parameters == "token-embedding":
            for encoder, own in self._words:
                handles.append(encoder.get_input_embeddings().register_forward_hook(partial(_detach_others, own)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def _words(self) -> list[tuple[Any, Tensor]]:
        """Every text encoder with the tokens that a prompt has and its anchor lacks, bool (vocabulary,)."""
        model, found = self.context.model, []
        for encoder, tokenizer in encoders(model).values():
            own = torch.zeros(encoder.get_input_embeddings().num_embeddings, dtype=torch.bool, device=model.device)
            for prompt, anchor in erase_pairs(self.context):
                ids = token_ids(model, prompt, tokenizer)
                own[[ids[i] for i in subject(ids, token_ids(model, anchor, tokenizer))]] = True
            found.append((encoder, own))
        return found

    def loss(self, generator: torch.Generator) -> Tensor:
        """What the target prompts predict on the anchor's images, against the variant's target."""
        config, model = self.config, self.context.model
        rows = torch.randint(len(self.anchors), (config.batch_size,), generator=generator)
        batch = self.anchors.rows(rows, generator)
        captions = [draw_captions(self._targets[self.anchors.captions[row]], 1, generator)[0] for row in rows.tolist()]
        with self._own_words():
            targets = model.encode_prompts(captions)
        t, noise = model.draw_noise(config.batch_size, generator)
        if config.variant == "noise":
            return model.denoising_loss_at(batch.latents, targets, t, noise)
        noisy = model.add_noise(batch.latents, noise, t)
        with torch.no_grad():
            source = model if config.anchor_from == "edited" else self.context.teacher
            answer = source.predict(noisy, t, source.encode_prompts(batch.captions))
        return (model.predict(noisy, t, targets) - answer).pow(2).mean()

    def preservation(self, generator: torch.Generator) -> Tensor | None:
        """The anchor's own denoising loss, and distillation on related and retained images."""
        config, model = self.config, self.context.model
        with self._own_words():
            keep = super().preservation(generator)
            if not config.prior_weight:
                return keep
            batch = self.anchors.batch(config.batch_size, generator)
            prior = config.prior_weight * model.denoising_loss(
                batch.latents, model.encode_prompts(batch.captions), generator
            )
        return prior if keep is None else prior + keep


def _detach_others(own: Tensor, embedding: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.where(own[inputs[0]].unsqueeze(-1), output, output.detach())
