"""MACE, Mass Concept Erasure (Lu et al. 2024, arXiv 2403.06135): a closed form, a descent per concept, a closed form.

All three change keys and values W of cross-attention. A prompt with the concept's words s is paired with its anchor,
which has other words s* in their place.

1. *Refinement* takes the concept out of the words around it. Columns e are the states of a prompt without the words s,
   e* those of its anchor at the same words (start, shared words, end, padding), p those to preserve:

       W' = (lam W + sum W e* e^T + mu sum W p p^T) (lam I + sum e e^T + mu sum p p^T)^-1

2. *One low-rank adapter per concept*, W' + B_i A_i, descends attention to the concept's words, where the concept is:

       loss = sum over layers |A[:, mask, S]|_F^2          (variant "released": the norm, not squared)

   A (heads, pixels, tokens) are attention probabilities of a noisy image of the concept, S the positions of s and, with
   ``padding``, of the end and padding tokens, where the text encoder gathers the whole prompt. Masks are the user's
   (``examples``), else the base model's own attention to s, thresholded; a style covers the whole image. Timesteps
   follow p(t) ~ sigmoid(0.05 (t - 200)) - sigmoid(0.05 (t - 400)), where shapes form.

3. *Fusion* of all adapters, over all states e of the prompts of each concept i; preserved states keep the original W_0:

       W* = (lam W' + sum_i sum_e (W' + B_i A_i) e e^T + mu sum W_0 p p^T) (lam I + sum_i sum_e e e^T + mu sum p p^T)^-1

Preserved states (p) are all states of the empty prompt and the retained subjects' prompts, and, ``preserve_weight``
times, of the related subjects' prompts; and of the captions of a file (``prior``). The published prior is 600,000
captions of COCO with mu = 1e-4 (celebrities, styles), which together weigh about as much as the erased prompts, with
8e3 to 2e5 times the subjects to keep; or no prior and lam = 1e3 (objects). Over the few prompts of a policy the same
balance is mu = 1. Published learning rates are 1e-4 (celebrities, styles) and 1e-5 (objects, nudity),
for 50 steps (nudity: 120) per concept. The reference model, whose text states are a third as long, wants 1e-2.

Departures of the released code, in ``variant: released``: the norm is not squared, and the refinement multiplies by mu
twice. Not repeated: it normalises images with ImageNet's statistics before the autoencoder, and decays weights by 0.01.
Concepts take turns at each step; Adam knows no state across parameters, so each is trained as if it were alone.

In a policy, with anchors that replace only the words of the concept::

    concepts:
      - name: weapons
        prompts: {template: "{name} emoji in {style} style", fill: {name: [a dagger], style: [noto, twemoji]}}
        anchor: "an emoji in {style} style"
        ...
    harden:
      unlearner: {name: mace, steps: 50, learning_rate: 1.0e-2}
      images: 56            # at least one per prompt
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from safeguard.config import MethodConfig
from safeguard.data.latents import LatentSet
from safeguard.errors import UsageFault
from safeguard.policy.schema import Concept
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext, Unlearner
from safeguard.unlearn.common import erase_pairs
from safeguard.unlearn.common.attention import attention_masks, cross_attention_maps, resize_masks
from safeguard.unlearn.common.captions import captions_digest, captions_moment
from safeguard.unlearn.common.closed_form import System, apply_change, guided_change, originals, projections
from safeguard.unlearn.common.examples import folder_digest, read_examples
from safeguard.unlearn.common.text_states import pair_moments, prompt_moment, prompts_of, subject, token_ids

MASK_TIME = 0.2
"""Share of the noise schedule at which the base model's attention is read for masks: shapes stand, noise is low."""


class MACEConfig(MethodConfig):
    """Settings of MACE."""

    variant: Literal["paper", "released"] = "paper"
    """Whether to repeat the released code's departures from the paper."""
    lam: Annotated[float, Field(ge=0)] = 0.5
    """Weight of staying near the old projections, in both closed forms."""
    refine_preserve: Annotated[float, Field(ge=0)] = 1.0
    """Weight mu of preserved states in the refinement."""
    fuse_preserve: Annotated[float, Field(ge=0)] = 1.0
    """Weight mu of preserved states in the fusion."""
    preserve_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of related subjects among the preserved states."""
    prior: str = ""
    """File of captions, one per line, whose text states are preserved too (mu is then small, 1e-4 as published); their
    sum is kept in the cache. None: the policy's own prompts alone."""
    rank: PositiveInt = 1
    """Rank of each concept's adapter."""
    steps: PositiveInt = 50
    """Optimiser steps per concept."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's learning rate."""
    batch_size: PositiveInt = 1
    """Images per step."""
    importance_sampling: bool = True
    """Timesteps where shapes form; False: uniform."""
    padding: bool = True
    """Attention to the end and padding tokens counts too."""
    mask_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the range of the base model's attention from which a pixel belongs to the concept."""
    examples: str = ""
    """Folder of the user's own images and masks (:mod:`safeguard.unlearn.common.examples`); none: the base model's
    images of the concept, which the hardening context holds."""

    @classmethod
    def tiny(cls) -> Self:
        """Four short steps per concept."""
        return cls(steps=4, learning_rate=1e-3, batch_size=2)


def timestep_density(timesteps: int) -> Tensor:
    """p(t) of MACE, float64 (timesteps,), not normalised; the published constants belong to 1000 timesteps."""
    t = torch.arange(timesteps, dtype=torch.float64) * (1000 / timesteps)
    return torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))


def attention_loss(maps: list[Tensor], masks: Tensor, tokens: Tensor, *, squared: bool) -> Tensor:
    """Mean over images of sum over layers |A[:, mask, S]|_F^2, or of the norms.

    Args:
        maps: probabilities (n, heads, pixels, tokens) of each layer.
        masks: bool (n, s, s), the concept's pixels.
        tokens: bool (n, tokens), S.
    """
    total = torch.zeros(len(tokens), device=tokens.device)
    for attention in maps:
        inside = resize_masks(masks, attention.shape[2])[:, None, :, None] & tokens[:, None, None, :]
        size = torch.linalg.vector_norm((attention * inside).flatten(1), dim=1)
        total = total + (size.square() if squared else size)
    return total.mean()


def fuse_update(weight: Tensor, original: Tensor, pull: Tensor, prior: Tensor, system: System) -> Tensor:
    """The fusion of one projection: W' + [sum_i dW_i G_i + (W_0 - W') mu P] A^-1.

    Args:
        weight, original: W' and W_0, (d_out, d_in).
        pull: sum over concepts of dW_i G_i with G_i = sum e e^T, (d_out, d_in).
        prior: mu sum p p^T, (d_in, d_in).
        system: A = lam I + sum_i G_i + prior.
    """
    refined = weight.double()
    return (refined + system.divide(pull + (original.double() - refined) @ prior)).to(weight.dtype)


class Adapter:
    """Low-rank updates B A of all keys and values for one concept; B starts at zero.

    Attributes:
        factors: projection -> (A (rank, d_in), B (d_out, rank)).
    """

    def __init__(self, unet: nn.Module, weights: dict[str, nn.Parameter], rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        owners = {module.weight: module for module in unet.modules() if isinstance(module, nn.Linear)}
        self._modules = {name: owners[weight] for name, weight in weights.items()}
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, weight in weights.items():
            down = torch.randn(rank, weight.shape[1], generator=generator) / rank
            up = torch.zeros(weight.shape[0], rank)
            self.factors[name] = (nn.Parameter(down.to(weight.device)), nn.Parameter(up.to(weight.device)))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """W x + B A x in place of W x."""
        hooks = {name: _low_rank(*factors) for name, factors in self.factors.items()}
        handles = [self._modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _low_rank(down: Tensor, up: Tensor) -> Any:
    return lambda module, inputs, output: output + (inputs[0].to(down.dtype) @ down.T @ up.T).to(output.dtype)


@dataclass
class _Course:
    """What one concept's descent needs.

    Attributes:
        rows: its images within ``data``.
        masks: bool (rows, s, s).
        tokens: bool (rows, tokens): the positions S of each image's caption.
    """

    concept: Concept
    data: LatentSet
    rows: list[int]
    masks: Tensor
    tokens: Tensor
    adapter: Adapter


class MACE(Unlearner):
    """Refinement, one adapter per concept, fusion."""

    Config: ClassVar = MACEConfig
    closed_form: ClassVar = True

    def __init__(self, config: MACEConfig, context: HardeningContext) -> None:
        self.config = config
        self.context = context
        self.steps = config.steps * len(context.concepts)
        self.learning_rate = config.learning_rate
        self.data_digest = folder_digest(config.examples) + captions_digest(config.prior)
        self._anchor_of = dict(erase_pairs(context))
        self._courses: list[_Course] = []

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Keys and values of all cross-attentions."""
        return projections(self.context)

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The factors of all adapters, ``concept/projection.down`` and ``.up``."""
        return {
            f"{course.concept.name}/{name}.{side}": factor
            for course in self._courses
            for name, factors in course.adapter.factors.items()
            for side, factor in zip(("down", "up"), factors, strict=True)
        }

    # -- refinement -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Refine the projections and set up every concept's descent."""
        config, context = self.config, self.context
        mu = config.refine_preserve ** (2 if config.variant == "released" else 1)
        shift, gram = pair_moments(context.model, erase_pairs(context), "surrounding")
        apply_change(self.parameters(), guided_change(shift, gram, self._prior(), lam=config.lam, es=1.0, ps=mu))
        self._courses = [self._course(concept) for concept in context.concepts]

    def _prior(self) -> Tensor:
        """sum p p^T over everything to preserve, (d_in, d_in)."""
        context = self.context
        related = [neighbour for concept in context.concepts for neighbour in concept.related]
        prior = prompt_moment(context.model, ["", *dict.fromkeys(prompts_of(context.policy.retain))])
        if related:
            near = prompt_moment(context.model, list(dict.fromkeys(prompts_of(related))))
            prior += self.config.preserve_weight * near
        if self.config.prior:
            prior += captions_moment(context.teacher, self.config.prior, context.progress)
        return prior

    # -- one adapter per concept ------------------------------------------------------------------------------------

    def _course(self, concept: Concept) -> _Course:
        context, config = self.context, self.config
        if config.examples:
            data, given = read_examples(config.examples, concept, context.teacher)
            rows = list(range(len(data)))
        else:
            data, prompts = context.forget, set(concept.prompt_list)
            rows = [row for row, caption in enumerate(data.captions) if caption in prompts]
            given = [None] * len(rows)
        if not rows:
            raise UsageFault(
                f"none of the {len(data)} images is of {concept.name!r}: there are {len(self._anchor_of)} prompts",
                fix="raise harden.images to at least the number of prompts",
                where="harden.images",
            )
        captions = [data.captions[row] for row in rows]
        words = torch.stack([self._subject(caption) for caption in captions])
        seed = derive(context.seed, "mace", concept.name)
        masks = self._masks(concept, data, rows, words, given, seed)
        if config.padding:
            words = words | torch.stack([self._ending(caption) for caption in captions])
        adapter = Adapter(context.model.unet, self.parameters(), config.rank, seed)
        return _Course(concept, data, rows, masks, words, adapter)

    def _subject(self, caption: str) -> Tensor:
        """bool (tokens,): the words that the caption's anchor lacks."""
        model = self.context.model
        mask = torch.zeros(model.empty.states.shape[1], dtype=torch.bool, device=model.device)
        mask[list(subject(token_ids(model, caption), token_ids(model, self._anchor_of[caption])))] = True
        return mask

    def _ending(self, caption: str) -> Tensor:
        """bool (tokens,): the end token and all padding."""
        model = self.context.model
        positions = torch.arange(model.empty.states.shape[1], device=model.device)
        return positions >= len(token_ids(model, caption)) - 1

    def _masks(
        self, concept: Concept, data: LatentSet, rows: list[int], words: Tensor, given: list[Tensor | None], seed: int
    ) -> Tensor:
        """Where the concept is on every image: given, everywhere for a style, else where the base model attends."""
        model = self.context.teacher
        side = model.latent_shape[-1]
        if concept.kind == "style":
            found = torch.ones(len(rows), side, side, dtype=torch.bool, device=model.device)
        else:
            generator = torch.Generator().manual_seed(seed)
            batch = data.rows(torch.tensor(rows), generator)
            _, noise = model.draw_noise(len(rows), generator)
            t = torch.full((len(rows),), int(MASK_TIME * model.timesteps), device=model.device)
            noisy = model.add_noise(batch.latents, noise, t)
            found = attention_masks(model, noisy, t, batch.conditioning, words, self.config.mask_threshold)
        for row, mask in enumerate(given):
            if mask is not None:
                found[row] = mask.to(found.device)
        return found

    def loss(self, generator: torch.Generator) -> Tensor:
        """Attention to the words of the concept whose turn it is, through its adapter."""
        config, model = self.config, self.context.model
        course = self._courses[self.context.step % len(self._courses)]
        chosen = torch.randint(len(course.rows), (config.batch_size,), generator=generator)
        batch = course.data.rows(torch.tensor(course.rows)[chosen], generator)
        t, noise = model.draw_noise(config.batch_size, generator)
        if config.importance_sampling:
            density = timestep_density(model.timesteps)
            t = torch.multinomial(density, config.batch_size, replacement=True, generator=generator).to(model.device)
        with course.adapter.attached(), cross_attention_maps(model.unet) as maps:
            model.predict(model.add_noise(batch.latents, noise, t), t, batch.conditioning)
        chosen = chosen.to(model.device)
        return attention_loss(maps, course.masks[chosen], course.tokens[chosen], squared=config.variant == "paper")

    # -- fusion -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def edit(self) -> None:
        """Fold all adapters into the projections."""
        config, model = self.config, self.context.model
        weights, base = self.parameters(), originals(self.context)
        prior = config.fuse_preserve * self._prior()
        total = prior.clone()
        pulls = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        for course in self._courses:
            gram = prompt_moment(model, course.concept.prompt_list)
            total += gram
            for name, (down, up) in course.adapter.factors.items():
                pulls[name] += up.double() @ (down.double() @ gram)
        system = System(total, config.lam)
        for name, weight in weights.items():
            weight.copy_(fuse_update(weight, base[name], pulls[name], prior, system))
