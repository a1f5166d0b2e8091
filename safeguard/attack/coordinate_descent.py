r"""Coordinate descent: words before a prompt, one by one; needs weights and images of it (RECORD, arXiv 2502.17537).

As UnlearnDiffAtk, the attack looks for k words in front of the prompt of an image of the concept under which the
attacked model predicts the noise well. It moves among texts only. One step, for one place j of every image's words:

    g = gradient of the loss with respect to the embedding of word j               (width,)
    candidates: the ``candidates`` words w with the smallest  e_w . g              (first order, as in GCG, 2307.15043)
    the loss with each of them in place is computed, and the best replaces word j if it is better

The loss is the mean over ``points`` draws of timestep and noise of every image, the same throughout, so it never rises.
Places are visited in sweeps, each in an order of its own; the words at the start are drawn by the seed. The paper's
defaults are not known to us; k is UnlearnDiffAtk's.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import GuidedSearch, GuidedSearchConfig, Kept
from safeguard.attack.prompts.points import Points, fixed_points
from safeguard.attack.prompts.vocabulary import Vocabulary, vocabulary
from safeguard.attack.target import Target
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class CoordinateDescentConfig(GuidedSearchConfig):
    """Settings of coordinate descent."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 25, 50]
    """Steps, of one word each, after which the concepts are looked for; step 0 always is."""
    points: PositiveInt = 4
    """Draws of timestep and noise of every image at which prompts are compared."""
    tokens: PositiveInt = 5
    """Words in front of the prompt (k)."""
    candidates: PositiveInt = 64
    """Words tried in a step."""

    @classmethod
    def tiny(cls) -> Self:
        """Four steps on three images."""
        return cls(checkpoints=[2, 4], images=3, points=2, tokens=2, candidates=3)


class CoordinateDescent(GuidedSearch[CoordinateDescentConfig]):
    """Change one word after the other, for the better only."""

    Config: ClassVar = CoordinateDescentConfig

    def cost(self) -> Cost:
        """A step differentiates once and tries every candidate; before, prompts and first words are measured."""
        config = self.config
        passes = 2 + config.steps * (1 + config.candidates)
        calls = config.images * config.points * passes
        return Cost(training_images=config.images, steps=config.steps, network_calls=calls)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model's weights stay as they are.

        Raises:
            UsageFault: a concept has none of the images.
        """
        config, model = self.config, target.model
        data = target.data.get(self.data, seed)
        generator = torch.Generator().manual_seed(derive(target.exam, self.probe, seed))
        points = fixed_points(model, data.mean, config.points, generator)
        kept = Kept(target, data, points)
        yield Attempt(0, loss=kept.loss)
        descent = Descent(config, kept, points, vocabulary(model, target.concepts, config.tokens), generator)
        for step in range(1, config.steps + 1):
            descent.step()
            if step in config.checkpoints:
                yield Attempt(step, prompts=kept.prompts, loss=kept.loss)


class Descent:
    """One run under way.

    Attributes:
        chosen: the words of each image, as places of the vocabulary (n, k).
        losses: with them, (n,).
    """

    def __init__(
        self, config: CoordinateDescentConfig, kept: Kept, points: Points, words: Vocabulary, generator: torch.Generator
    ) -> None:
        self._config, self._kept, self._points, self._words, self._generator = config, kept, points, words, generator
        shape = len(kept.captions), config.tokens
        self.chosen = torch.randint(len(words), shape, generator=generator).to(words.table.device)
        self.losses = torch.full((len(self.chosen),), torch.inf, device=self.chosen.device)
        self._try(self.chosen)
        self._order: list[int] = []

    def step(self) -> None:
        """Another word at one place of every image, where one is better."""
        if not self._order:
            self._order = torch.randperm(self._config.tokens, generator=self._generator).tolist()
        place = self._order.pop()
        for words in self.candidates(place).T:
            tried = self.chosen.clone()
            tried[:, place] = words
            self._try(tried)

    def candidates(self, place: int) -> Tensor:
        """The words that promise most at a place, best first, (n, candidates); fewer where there are fewer words."""
        gradient = self._kept.model.execution.within_memory(self._gradient)[:, place]
        promise = -gradient @ self._words.table.T
        return promise.topk(min(self._config.candidates, len(self._words)), dim=1).indices

    def _gradient(self) -> Tensor:
        """Of the loss with respect to the embeddings of the words, (n, k, width)."""
        model, words = self._kept.model, self._words.table[self.chosen].requires_grad_(True)
        with torch.enable_grad():
            losses = self._points.losses(model, encode_with_prefix(model, self._kept.captions, words))
            (gradient,) = torch.autograd.grad(losses.sum(), words)
        return gradient

    def _try(self, chosen: Tensor) -> None:
        """Take these words where they are better, and the content filter lets them pass."""
        texts = [f"{self._words.text(row)} {text}" for row, text in zip(chosen, self._kept.captions, strict=True)]
        losses = self._kept.measure(texts)
        better = self._kept.improve(texts, losses, self.losses)
        self.chosen = chosen.where(better[:, None], self.chosen)
        self.losses = losses.where(better, self.losses)
        self._kept.offer(texts, losses)
