r"""UnlearnDiffAtk: words before a prompt, by gradients; needs weights and images of the concept (arXiv 2310.11868).

For an image z_0 of the concept, drawn by the base model for the prompt c, the attack looks for k words delta:

    minimise  E || eps - eps_theta(z_t, T([delta; c]), t) ||^2       z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps

Every word is a row of a matrix Z (k, v) on the probability simplex over the vocabulary, uniform at the start. A step
draws one word of each row, takes the gradient g (k, width) of the loss with respect to their embeddings, hands the
straight-through gradient clip(g E^T, -1, 1) for the table E (v, width) to Adam (with its L2 decay), and projects Z back
onto the simplex. After every ``block`` steps, and at checkpoints, the most likely words are one prompt, which is kept
if the model predicts the noise better with it than with any before (:class:`safeguard.attack.prompts.base.Kept`).

The timestep is fixed for a block, and rises from block to block through ``timesteps`` values as in the paper; a run
longer than these begins again. Released code: 50 values, 40 steps each, k = 5 (3 for styles and objects), learning rate
0.01, decay 0.1, and all tokens as candidates, where here whole words are. It draws images after every block and stops
at the first that shows the concept: the best of up to 51, on the noise that is reported. Here nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import Kept
from safeguard.attack.prompts.blocks import BlockSearch, BlockSearchConfig
from safeguard.attack.prompts.points import Points, fixed_points, noisy, spaced_times
from safeguard.attack.prompts.simplex import draw, project
from safeguard.attack.prompts.vocabulary import Vocabulary, vocabulary
from safeguard.attack.target import Target
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class UnlearnDiffAtkConfig(BlockSearchConfig):
    """Settings of UnlearnDiffAtk."""

    tokens: PositiveInt = 5
    """Words in front of the prompt (k)."""
    learning_rate: PositiveFloat = 0.01
    """Adam's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Adam's L2 decay."""
    batch_size: PositiveInt = 1
    """Draws of noise per image and step."""
    block: PositiveInt = 40
    """Steps between two comparisons with the best prompts so far, and with one timestep."""
    timesteps: PositiveInt = 50
    """Values that the timestep goes through."""
    order: Literal["ascending", "random"] = "ascending"
    """Whether it rises from block to block (the paper), or is drawn anew for every image and step."""

    @classmethod
    def tiny(cls) -> Self:
        """Four steps on three images."""
        return cls(
            checkpoints=[2, 4], images=3, points=2, tokens=2, learning_rate=0.5, batch_size=2, block=1, timesteps=2
        )


class UnlearnDiffAtk(BlockSearch[UnlearnDiffAtkConfig]):
    """Look for words in front of each image's prompt."""

    Config: ClassVar = UnlearnDiffAtkConfig

    def cost(self) -> Cost:
        """Every step sees every image; so does every comparison, the first one of the declared prompts."""
        config = self.config
        calls = config.steps * config.batch_size + (1 + len(self.compared())) * config.points
        return Cost(training_images=config.images, steps=config.steps, network_calls=config.images * calls)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model's weights stay as they are.

        Raises:
            UsageFault: a concept has none of the images.
        """
        config, model = self.config, target.model
        data = target.data.get(self.data, seed)
        own = torch.Generator().manual_seed(derive(target.exam, self.probe, seed, "comparison"))
        kept = Kept(target, data, fixed_points(model, data.mean, config.points, own))
        yield Attempt(0, loss=kept.loss)
        words = vocabulary(model, target.concepts, config.tokens)
        yield from self.follow(Search(config, model, data, words, derive(target.exam, self.probe, seed)), kept)


class Search:
    """One run under way.

    Attributes:
        z: shares of the words, (n images, k, v), each row on the simplex.
        done: steps so far.
    """

    def __init__(
        self, config: UnlearnDiffAtkConfig, model: DiffusionModel, data: LatentSet, words: Vocabulary, seed: int
    ) -> None:
        self._config, self._model, self._data, self._words = config, model, data, words
        self.z = torch.full((len(data), config.tokens, len(words)), 1 / len(words), device=model.device)
        self._adam = torch.optim.Adam([self.z], lr=config.learning_rate, weight_decay=config.weight_decay)
        self._generator = torch.Generator().manual_seed(seed)
        self._times = spaced_times(model, config.timesteps)
        self.done = 0

    def step(self) -> None:
        """One step of Adam for every image."""
        gradient = self._model.execution.within_memory(self._gradient, self._generator)
        self.z.grad = (gradient @ self._words.table.T).clamp(-1, 1)
        self._adam.step()
        self.z.copy_(project(self.z))
        self.done += 1

    def _gradient(self) -> Tensor:
        """Of the loss with respect to the embeddings of words drawn for every image, (n, k, width)."""
        words = self._words.table[draw(self.z, self._generator)].requires_grad_(True)
        points = self._points()
        with torch.enable_grad():
            losses = points.losses(self._model, encode_with_prefix(self._model, self._data.captions, words))
            (gradient,) = torch.autograd.grad(losses.sum(), words)
        return gradient

    def _points(self) -> Points:
        """Noisy images at the timestep of this block, or at any."""
        shape = len(self._data), self._config.batch_size
        if self._config.order == "random":
            t = torch.randint(0, self._model.timesteps, shape, generator=self._generator)
        else:
            t = torch.full(shape, self._times[self.done // self._config.block % len(self._times)])
        return noisy(self._model, self._data.mean, t, self._generator)

    def texts(self) -> list[str]:
        """Each prompt behind its most likely words."""
        chosen = self.z.argmax(-1)
        return [f"{self._words.text(row)} {text}" for row, text in zip(chosen, self._data.captions, strict=True)]
