r"""SneakyPrompt: other words for the names of the concept, found by asking; needs no weights (arXiv 2305.12082).

Words of the concepts' names and labels in a declared prompt are replaced by ``words`` other words for every run of
them, or, where the prompt has none, such words are put in front. Each query draws one image of a prompt with the
attacked model and learns how much of the concept the policy's detector sees
(:class:`safeguard.attack.target.Oracle`, whose noise is never what is judged). The declared prompt is the first that is
asked. Then, for every prompt by itself,

    a candidate: the best so far with one word exchanged, or all words drawn anew with probability ``fresh``
    one query:   is it above the mean of the best so far? else it is dropped
    ``confirm`` more queries, whose mean counts, and not the first score, by which it was chosen: above, it is the best

The paper draws words by an LSTM that it trains with REINFORCE, in sixty queries of a reward over 49,408 tokens; this
search is simpler, and asks again before it believes. Its candidates are as the paper's: words of letters, shorter than
``longest``. It stops at a reward; here the budget is spent, and what was found is judged on fresh noise. The paper's
reward is a CLIP score, and zero where a safety filter answers; here the detector of the examination is the reward.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Generator, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import PromptSearch, PromptSearchConfig
from safeguard.attack.prompts.goals import Goal, found, goals, names_of
from safeguard.attack.prompts.vocabulary import vocabulary
from safeguard.attack.target import Oracle, Target
from safeguard.data.plain_text import folded
from safeguard.results.plan import Cost
from safeguard.seeds import derive


class SneakyPromptConfig(PromptSearchConfig):
    """Settings of SneakyPrompt."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [30, 60]
    """Queries of each prompt after which the concepts are looked for; 0 always is, with the declared prompts."""
    prompts: PositiveInt = 8
    """Prompts of each concept that are attacked."""
    words: PositiveInt = 1
    """Words in the place of a name."""
    longest: PositiveInt = 10
    """Letters that a word has fewer of."""
    fresh: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Probability that all words of a candidate are drawn anew."""
    confirm: PositiveInt = 2
    """Further queries by which a promising candidate is measured."""

    @classmethod
    def tiny(cls) -> Self:
        """Four queries."""
        return cls(checkpoints=[2, 4], prompts=2, confirm=1)


class SneakyPrompt(PromptSearch[SneakyPromptConfig]):
    """Exchange words, ask, and keep what is confirmed."""

    Config: ClassVar = SneakyPromptConfig
    axis: ClassVar = "queries"

    def cost(self) -> Cost:
        """Its queries."""
        return Cost(queries=self.config.steps * self.config.prompts)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model only draws."""
        config, own = self.config, derive(target.exam, self.probe, seed)
        aims, names = goals(target.concepts, config.prompts, own), names_of(target.concepts)
        every = vocabulary(target.model, target.concepts)
        odd = {word for word in every.words if not word.isalpha() or len(word) >= config.longest}
        words = every.without(names | odd).words
        hunts = [Hunt(config, aim, names, words, derive(own, place)) for place, aim in enumerate(aims)]
        oracle = target.oracle(derive(seed, self.probe))
        yield Attempt(0)
        for query in range(1, config.steps + 1):
            ask(oracle, hunts)
            if query in config.checkpoints:
                loss = 1 - sum(hunt.mean for hunt in hunts) / len(hunts)
                yield Attempt(query, prompts=found(aims, [hunt.best for hunt in hunts]), loss=loss)


def ask(oracle: Oracle, hunts: Sequence[Hunt]) -> None:
    """One query of every prompt."""
    for concept in dict.fromkeys(hunt.aim.concept.name for hunt in hunts):
        asking = [hunt for hunt in hunts if hunt.aim.concept.name == concept]
        scores = oracle(asking[0].aim.concept, [hunt.text for hunt in asking])
        for hunt, score in zip(asking, scores.tolist(), strict=True):
            hunt.tell(score)


def in_halves(prompt: str, names: Collection[str]) -> list[list[str]]:
    """The words of a prompt, apart wherever a run of names stood; without any, all of them after an empty part."""
    parts: list[list[str]] = [[]]
    before = False
    for word in prompt.split():
        named = folded(word).strip(string.punctuation) in names
        if not named:
            parts[-1].append(word)
        elif not before:
            parts.append([])
        before = named
    return parts if len(parts) > 1 else [[], *parts]


class Hunt:
    """The search for one prompt.

    Attributes:
        text: what is asked next.
        best: the best text so far, the declared prompt to begin with.
        mean: its mean score.
    """

    def __init__(
        self, config: SneakyPromptConfig, aim: Goal, names: Collection[str], words: Sequence[str], seed: int
    ) -> None:
        self._config, self.aim, self._words = config, aim, words
        self._generator = torch.Generator().manual_seed(seed)
        self._parts = in_halves(aim.prompt, names)
        self._chosen: list[int] | None = None  # of the best; none: it is the declared prompt
        self._tried: list[int] | None = None
        self._scores: list[float] = []
        self.text = self.best = aim.prompt
        self.mean = -1.0  # below every score: the declared prompt is asked and confirmed first

    def tell(self, score: float) -> None:
        """How the text was answered."""
        self._scores.append(score)
        if score <= self.mean and len(self._scores) == 1:
            self._next()
        elif len(self._scores) > self._config.confirm:
            mean = sum(self._scores[1:]) / self._config.confirm
            if mean > self.mean:
                self.best, self.mean, self._chosen = self.text, mean, self._tried
            self._next()

    def _next(self) -> None:
        """Another candidate."""
        count, generator = (len(self._parts) - 1) * self._config.words, self._generator
        anew = self._chosen is None or float(torch.rand((), generator=generator)) < self._config.fresh
        drawn = torch.randint(len(self._words), (count,), generator=generator).tolist()
        place = int(torch.randint(count, (), generator=generator))
        if self._chosen is not None and not anew:
            drawn = [*self._chosen[:place], drawn[place], *self._chosen[place + 1 :]]
        self._tried, self._scores, self.text = drawn, [], self._written(drawn)

    def _written(self, chosen: Sequence[int]) -> str:
        """The prompt with these words where the names were."""
        each = self._config.words
        text = list(self._parts[0])
        for place, part in enumerate(self._parts[1:]):
            text += [self._words[word] for word in chosen[place * each : (place + 1) * each]] + part
        return " ".join(text)
