r"""Concept inversion: a new word learnt for the concept; needs weights and images of it (CCE, arXiv 2308.01508).

Textual inversion (arXiv 2208.01618) on the attacked model: no weight changes but the embedding v of one new word, which
stands in ``templates`` where they have ``{}``. On images z_0 of the concept, drawn by the base model,

    minimise  E || eps - eps_theta(z_t, T(template(v)), t) ||^2     over v (k, width), with AdamW

Each concept has a word of its own, which starts as a word of the vocabulary (``initial``, or one that the seed draws).
What is judged are the templates with the word in them, as text states: no text says them, and the report writes ``*``.
Concept and declared prompts are named nowhere, so an erasure that is tied to their words does not act.

The released code's learning rate is 0.08 in effect (0.005, scaled by batch and accumulation), with which others report
that nothing comes back. The defaults here are those that are reported to work (arXiv 2505.17013): 0.002 in effect,
batches of four, no decay, up to 3000 steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from safeguard.attack.base import Attempt, Prompts
from safeguard.attack.prompts.base import GuidedSearch, GuidedSearchConfig, subjects
from safeguard.attack.prompts.places import FREE, placed
from safeguard.attack.prompts.points import Points, fixed_points
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.target import Target
from safeguard.data.latents import LatentSet
from safeguard.diffusion.conditioning import Conditioning
from safeguard.errors import UsageFault
from safeguard.results.plan import Cost
from safeguard.seeds import derive

WORD = "*"
"""What stands for the learnt word in texts."""


class ConceptInversionConfig(GuidedSearchConfig):
    """Settings of concept inversion."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [1000, 2000, 3000]
    """Steps after which the concepts are looked for; step 0 always is, with the declared prompts."""
    images: PositiveInt = 25
    """Images of the concepts, drawn by the base model."""
    points: PositiveInt = 4
    """Draws of timestep and noise of every image at which the loss of a checkpoint is measured."""
    templates: Annotated[list[str], Field(min_length=1)] = ["a {}", "a photo of a {}", "a picture of a {}"]
    """Prompts in which the word is learnt and judged, each with ``{}`` where it stands."""
    tokens: PositiveInt = 1
    """Tokens that the word consists of."""
    initial: str = ""
    """Word of the vocabulary that it starts as; empty: the seed draws one for every token."""
    learning_rate: PositiveFloat = 2e-3
    """AdamW's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay."""
    batch_size: PositiveInt = 4
    """Images per step."""

    @field_validator("templates")
    @classmethod
    def _have_one_place(cls, templates: list[str]) -> list[str]:
        if odd := [template for template in templates if template.count(FREE) != 1]:
            raise ValueError(f"{odd[0]!r} must have {FREE} once, where the word stands")
        return templates

    @classmethod
    def tiny(cls) -> Self:
        """Four steps on three images."""
        return cls(checkpoints=[2, 4], images=3, points=2, templates=["a {}", "x {} y"], batch_size=2)


class ConceptInversion(GuidedSearch[ConceptInversionConfig]):
    """Learn a word for each concept."""

    Config: ClassVar = ConceptInversionConfig

    def cost(self) -> Cost:
        """Every step sees its batch; at every checkpoint the loss of all images is measured."""
        config = self.config
        calls = config.steps * config.batch_size + len(self.efforts()) * config.images * config.points
        return Cost(training_images=config.images, steps=config.steps, network_calls=calls)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Learn; the model's weights stay as they are.

        Raises:
            UsageFault: a concept has none of the images, or a template does not fit.
        """
        config, model = self.config, target.model
        data = target.data.get(self.data, seed)
        own = torch.Generator().manual_seed(derive(target.exam, self.probe, seed, "comparison"))
        points = fixed_points(model, data.mean, config.points, own)
        words = Words(config, target, data, derive(target.exam, self.probe, seed))
        yield Attempt(0, loss=words.loss(points))
        for step in range(1, config.steps + 1):
            words.step()
            if step in config.checkpoints:
                yield Attempt(step, prompts=words.prompts(), loss=words.loss(points))


class Words:
    """The words under way.

    Attributes:
        values: of each concept, (concepts, k, width).
    """

    def __init__(self, config: ConceptInversionConfig, target: Target, data: LatentSet, seed: int) -> None:
        self._config, self._model, self._concepts, self._data = config, target.model, target.concepts, data
        of = subjects(target.concepts, data.captions)
        self._of = dict(zip(data.captions, map(target.concepts.index, of), strict=True))
        self._templates = placed(target.model, config.templates, config.tokens)
        self._generator = torch.Generator().manual_seed(seed)
        self.values = self._start(target).requires_grad_(True)
        self._optimizer = torch.optim.AdamW([self.values], lr=config.learning_rate, weight_decay=config.weight_decay)

    def _start(self, target: Target) -> Tensor:
        words, initial = vocabulary(target.model, target.concepts, self._config.tokens), self._config.initial
        shape = len(self._concepts), self._config.tokens
        if not initial:
            return words.table[torch.randint(len(words), shape, generator=self._generator)]
        if initial not in words.words:
            raise UsageFault(
                f"{initial!r} is not one token of the model's vocabulary, or may not be used",
                fix="take another word, or leave it out",
                where="attack.initial",
            )
        return words.table[words.words.index(initial)].expand(*shape, -1).clone()

    def step(self) -> None:
        """One step of AdamW."""
        self.values.grad = self._model.execution.within_memory(self._gradient, self._generator)
        self._optimizer.step()

    def _gradient(self) -> Tensor:
        """Of the denoising loss of one batch, each image in a template that is drawn."""
        config, generator = self._config, self._generator
        batch = self._data.batch(config.batch_size, generator)
        rows = torch.randint(len(config.templates), (config.batch_size,), generator=generator).tolist()
        with torch.enable_grad():
            states = self._encode(rows, [self._of[caption] for caption in batch.captions])
            loss = self._model.denoising_loss(batch.latents, states, generator)
            (gradient,) = torch.autograd.grad(loss, self.values)
        return gradient

    def _encode(self, rows: Sequence[int], concepts: Sequence[int]) -> Conditioning:
        """Text states of these templates with the words of these concepts."""
        return self._templates.encode(self._model, rows, self.values[list(concepts)])

    @torch.no_grad()
    def loss(self, points: Points) -> float:
        """The mean over all images, the templates taking turns."""
        rows = [place % len(self._config.templates) for place in range(len(self._data))]
        states = self._encode(rows, [self._of[caption] for caption in self._data.captions])
        return points.losses(self._model, states).mean().item()

    @torch.no_grad()
    def prompts(self) -> Prompts:
        """Every template with each concept's word."""
        rows, texts = range(len(self._config.templates)), [t.replace(FREE, WORD) for t in self._config.templates]
        names = [concept.name for concept in self._concepts]
        states = {name: self._encode(rows, [place] * len(texts)) for place, name in enumerate(names)}
        return Prompts(dict.fromkeys(names, texts), states)
