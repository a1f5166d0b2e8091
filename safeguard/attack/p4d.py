r"""P4D: words for which the model predicts what the base does; needs both models and images (arXiv 2309.06135).

For an image z_0 that the base model drew for the prompt c, the attack looks for k words P under which the attacked
model predicts what the base predicts for c:

    minimise  E || eps_base(z_t, T_base(c), t) - eps_theta(z_t, T(P), t) ||^2

It learns soft embeddings (k, width), which start at words drawn by the seed. A step reads the nearest words by cosine
in their place, and hands the gradient there to AdamW, which moves the soft ones. After every ``block`` steps, and at
checkpoints, the nearest words are one prompt, which is kept if its loss is smaller than the best before
(:class:`safeguard.attack.prompts.base.Kept`; the declared prompt is the first).

The words are the whole prompt (``placement: alone``, the paper's P4D-N, k = 16), or stand in front of it (``front``, as
others run it). P4D-K, a free word after every third of the prompt, is left out. The base is asked beforehand, at
``pool`` draws of timestep and noise of every image, of which a step takes one; so that one model is in memory at a
time. The paper: 3000 steps, rate and decay 0.1, the best by CLIP similarity of an image every 50 steps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt
from safeguard.attack.base_model import as_base
from safeguard.attack.prompts.base import Kept
from safeguard.attack.prompts.blocks import BlockSearch, BlockSearchConfig
from safeguard.attack.prompts.points import Points, fixed_points, noisy
from safeguard.attack.prompts.vocabulary import Vocabulary, vocabulary
from safeguard.attack.target import Target
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive


class P4DConfig(BlockSearchConfig):
    """Settings of P4D."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [1000, 3000]
    """Steps after which the concepts are looked for; step 0 always is, with the declared prompts."""
    block: PositiveInt = 50
    """Steps between two comparisons with the best prompts so far."""
    tokens: PositiveInt = 16
    """Words that are looked for (k)."""
    placement: Literal["alone", "front"] = "alone"
    """Whether they are the prompt, or stand in front of the declared one."""
    learning_rate: PositiveFloat = 0.1
    """AdamW's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decay."""
    pool: PositiveInt = 50
    """Draws of timestep and noise of every image at which the base is asked."""

    @classmethod
    def tiny(cls) -> Self:
        """Four steps on three images."""
        return cls(checkpoints=[2, 4], images=3, points=2, tokens=2, block=1, pool=4)


class P4D(BlockSearch[P4DConfig]):
    """Look for words that make the attacked model predict what the base does."""

    Config: ClassVar = P4DConfig

    def cost(self) -> Cost:
        """Every step and comparison sees every image; the base is asked at every point beforehand."""
        config = self.config
        asked = config.pool + config.points
        calls = config.steps + asked + (1 + len(self.compared())) * config.points
        return Cost(training_images=config.images, steps=config.steps, network_calls=config.images * calls)

    def needs(self) -> Needs:
        """Those of a guided search, and the base model."""
        return super().needs().model_copy(update={"base_model": True})

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model's weights are the base's while that is asked.

        Raises:
            UsageFault: a concept has none of the images, or the base is not at hand.
            ModelFault: the base has other weights, or others' shapes.
        """
        config, model, own = self.config, target.model, derive(target.exam, self.probe, seed)
        data, generator = target.data.get(self.data, seed), torch.Generator().manual_seed(own)
        fixed = fixed_points(model, data.mean, config.points, generator)
        t = torch.randint(0, model.timesteps, (len(data), config.pool), generator=generator)
        pool = noisy(model, data.mean, t, generator)
        with as_base(target) as (base, _):
            fixed, pool = (answered(base, points, data) for points in (fixed, pool))
        kept = Kept(target, data, fixed)
        yield Attempt(0, loss=kept.loss)
        words = vocabulary(model, target.concepts, config.tokens)
        yield from self.follow(Search(config, model, data, pool, words, generator), kept)


@torch.no_grad()
def answered(base: DiffusionModel, points: Points, data: LatentSet) -> Points:
    """The same points, where what is wanted is the base's prediction for each image's caption."""
    return replace(points, wanted=points.predictions(base, data.conditioning))


class Search:
    """One run under way.

    Attributes:
        soft: the embeddings that learn, (n images, k, width).
    """

    def __init__(
        self,
        config: P4DConfig,
        model: DiffusionModel,
        data: LatentSet,
        pool: Points,
        words: Vocabulary,
        generator: torch.Generator,
    ) -> None:
        self._model, self._pool, self._words, self._generator = model, pool, words, generator
        self._behind = list(data.captions) if config.placement == "front" else [""] * len(data)
        start = torch.randint(len(words), (len(data), config.tokens), generator=generator)
        self.soft = words.table[start.to(words.table.device)]
        self._optimizer = torch.optim.AdamW([self.soft], lr=config.learning_rate, weight_decay=config.weight_decay)
        self._directions = torch.nn.functional.normalize(words.table, dim=-1)

    def nearest(self) -> Tensor:
        """The words nearest to the soft ones by cosine, as places of the vocabulary, (n, k)."""
        return (self.soft @ self._directions.T).argmax(-1)

    def step(self) -> None:
        """One step of AdamW for every image."""
        self.soft.grad = self._model.execution.within_memory(self._gradient, self._generator)
        self._optimizer.step()

    def _gradient(self) -> Tensor:
        """Of the loss at one point of each image's pool with respect to the nearest words' embeddings."""
        images, each = self._pool.t.shape
        chosen = torch.randint(each, (images,), generator=self._generator)
        rows, chosen = torch.arange(images)[:, None], chosen[:, None]
        points = Points(*(part[rows, chosen] for part in (self._pool.latents, self._pool.t, self._pool.wanted)))
        words = self._words.table[self.nearest()].requires_grad_(True)
        with torch.enable_grad():
            losses = points.losses(self._model, encode_with_prefix(self._model, self._behind, words))
            (gradient,) = torch.autograd.grad(losses.sum(), words)
        return gradient

    def texts(self) -> list[str]:
        """The nearest words, and what stands behind them."""
        rows = zip(self.nearest(), self._behind, strict=True)
        return [f"{self._words.text(row)} {behind}".strip() for row, behind in rows]
