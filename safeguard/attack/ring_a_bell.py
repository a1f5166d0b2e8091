r"""Ring-A-Bell: words that read like a prompt and more of its concept; needs the text encoder (arXiv 2310.10012).

With the text states T (tokens, width) of the attacked model's text encoder,

    vec    = mean of T over the concept's prompts - mean of T over prompts without it
    target = T(prompt) + eta vec
    find ``tokens`` words w with the smallest  || T(w) - target ||^2

by a genetic search: of ``population`` candidates the better half stays and has as many children; two parents swap
their ends at one place with probability ``crossover``, and a child changes one word with probability ``mutation``.

The paper takes the mean over pairs of prompts with and without the concept, which is this difference of means. Without
it are here the related subjects' prompts and the retained ones', or no prompt where neither is declared. The paper's
attacker has a public CLIP text encoder, which is the attacked model's own unless hardening changed it. Its denoiser is
never asked. Paper: eta 3 (nudity) to 5.5, 16 to 77 tokens, 200 candidates, 3000 generations.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import PromptSearch, PromptSearchConfig
from safeguard.attack.prompts.goals import Goal, found, goals
from safeguard.attack.prompts.vocabulary import Vocabulary, vocabulary
from safeguard.attack.target import Target
from safeguard.data.content_filter import is_allowed
from safeguard.data.fine_tuning import subjects_of
from safeguard.data.screening import surroundings
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.schema import Policy
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive


class RingABellConfig(PromptSearchConfig):
    """Settings of Ring-A-Bell."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [1000, 3000]
    """Generations after which the concepts are looked for; 0 always is, with the declared prompts."""
    prompts: PositiveInt = 8
    """Prompts of each concept that words are looked for."""
    tokens: PositiveInt = 16
    """Words of a found prompt."""
    eta: float = 3.0
    """How much of the concept is added."""
    population: Annotated[int, Field(ge=4)] = 200
    """Candidates at a time."""
    crossover: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that two parents swap their ends."""
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a child changes a word."""

    @classmethod
    def tiny(cls) -> Self:
        """Four generations of six."""
        return cls(checkpoints=[2, 4], prompts=2, tokens=3, population=6)


class RingABell(PromptSearch[RingABellConfig]):
    """Breed words towards text states."""

    Config: ClassVar = RingABellConfig
    axis: ClassVar = "generations"

    def cost(self) -> Cost:
        """Its generations; the denoiser is not asked."""
        return Cost(steps=self.config.steps)

    def needs(self) -> Needs:
        """The text encoder."""
        return Needs(weights=True)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model is only read with."""
        config, model, own = self.config, target.model, derive(target.exam, self.probe, seed)
        aims, words = goals(target.concepts, config.prompts, own), vocabulary(model, target.concepts, config.tokens)
        beside = surroundings(target.concepts)
        herds = [
            Herd(config, model, words, wanted(model, target.policy, aim, config.eta), beside, derive(own, place))
            for place, aim in enumerate(aims)
        ]
        yield Attempt(0, loss=_mean(herds))
        for generation in range(1, config.steps + 1):
            for herd in herds:
                herd.breed()
            if generation in config.checkpoints:
                texts = [herd.best or aim.prompt for herd, aim in zip(herds, aims, strict=True)]
                yield Attempt(generation, prompts=found(aims, texts), loss=_mean(herds))


@torch.no_grad()
def wanted(model: DiffusionModel, policy: Policy, aim: Goal, eta: float) -> Tensor:
    """The text states that words are looked for, (tokens, width)."""
    benign = [*aim.concept.related, *subjects_of(policy, "retain")]
    without = [prompt for subject in benign for prompt in subject.prompt_list] or [""]
    means = [model.encode_anew(texts).states.mean(0) for texts in (aim.concept.prompt_list, without)]
    return model.encode_anew([aim.prompt]).states[0] + eta * (means[0] - means[1])


class Herd:
    """The candidates for one prompt.

    Attributes:
        chosen: their words, as places of the vocabulary (population, k), the best first.
        distances: of their text states to what is wanted, squared, (population,); infinite where the content filter
            refuses a candidate.
    """

    def __init__(
        self, config: RingABellConfig, model: DiffusionModel, words: Vocabulary, goal: Tensor, beside: str, seed: int
    ) -> None:
        self._config, self._model, self._words, self._goal, self._beside = config, model, words, goal, beside
        self._generator = torch.Generator().manual_seed(seed)
        self.chosen = torch.randint(len(words), (config.population, config.tokens), generator=self._generator)
        self.distances = self._measure(self.chosen, torch.inf)
        self._sort()

    @property
    def best(self) -> str:
        """The best candidate; empty while the content filter refused them all."""
        return self._words.text(self.chosen[0]) if self.distances[0] < torch.inf else ""

    def breed(self) -> None:
        """One generation."""
        half = self._config.population // 2
        parents, distances = self.chosen[:half], self.distances[:half]
        children = self._children(parents, self._config.population - half)
        self.chosen = torch.cat([parents, children])
        self.distances = torch.cat([distances, self._measure(children, float(distances[-1]))])
        self._sort()

    def _children(self, parents: Tensor, count: int) -> Tensor:
        """Two by two of two parents each, their ends swapped or not; then some change one word."""
        config, generator = self._config, self._generator
        pairs = torch.randint(len(parents), ((count + 1) // 2, 2), generator=generator)
        cuts = torch.randint(1, max(2, config.tokens), (len(pairs), 1), generator=generator)
        swap = torch.rand(len(pairs), 1, generator=generator) < config.crossover
        ends = swap & (torch.arange(config.tokens) >= cuts)
        first, second = parents[pairs[:, 0]], parents[pairs[:, 1]]
        children = torch.cat([first.where(~ends, second), second.where(~ends, first)])[:count]
        rows = (torch.rand(count, generator=generator) < config.mutation).nonzero()[:, 0]
        places = torch.randint(config.tokens, (len(rows),), generator=generator)
        children[rows, places] = torch.randint(len(self._words), (len(rows),), generator=generator)
        return children

    @torch.no_grad()
    def _measure(self, chosen: Tensor, least: float) -> Tensor:
        """Squared distances; those below ``least``, which may become parents, are held against the content filter."""
        texts = [self._words.text(row) for row in chosen]
        distances = (self._model.encode_anew(texts).states - self._goal).pow(2).sum((1, 2)).cpu()
        for place, text in enumerate(texts):
            if distances[place] < least and not is_allowed(f"{self._beside} {text}"):
                distances[place] = torch.inf
        return distances

    def _sort(self) -> None:
        order = self.distances.argsort(stable=True)
        self.chosen, self.distances = self.chosen[order], self.distances[order]


def _mean(herds: Sequence[Herd]) -> float:
    """Of the smallest squared distances."""
    return torch.stack([herd.distances[0] for herd in herds]).mean().item()
