r"""MMA-Diffusion, text part: words that mean a prompt and do not name it; needs the text encoder (arXiv 2311.17516).

For a declared prompt p the attack looks for k words w that the attacked model's text encoder sums up alike:

    minimise  1 - cos(s(w), s(p))        s: the pooled states of SDXL, else the state of the end token

by greedy coordinate gradient (2307.15043). One step: the gradient of the loss with respect to the choice of each word,
every place's row scaled to length 1; the ``top`` words of each place that it promises most; ``tries`` candidates, each
with one word replaced by one of these, the places taking equal shares; the best candidate is taken, be it better or
not, and the best of all is remembered. Words of the concepts' names and labels are no candidates (``avoid_names``).

The released code takes 20 letters to begin with, 512 tries of 256, and 1000 steps. It takes the gradient of each word
at the place before (its row 0 is the start token); here places and words are the same. Its candidates are all tokens,
where here whole words are, and what does not read back as so many tokens does not arise. Its attack on images of a
safety checker is not part of this.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import PromptSearch, PromptSearchConfig
from safeguard.attack.prompts.goals import found, goals, names_of
from safeguard.attack.prompts.vocabulary import Vocabulary, vocabulary
from safeguard.attack.target import Target
from safeguard.data.content_filter import is_allowed
from safeguard.data.screening import surroundings
from safeguard.diffusion.conditioning import Conditioning
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.results.plan import Cost, Needs
from safeguard.seeds import derive


class MMAConfig(PromptSearchConfig):
    """Settings of MMA-Diffusion's search for words."""

    checkpoints: Annotated[list[PositiveInt], Field(min_length=1)] = [200, 1000]
    """Steps after which the concepts are looked for; step 0 always is, with the declared prompts."""
    prompts: PositiveInt = 8
    """Prompts of each concept that words are looked for."""
    tokens: PositiveInt = 20
    """Words of a found prompt (k)."""
    top: PositiveInt = 256
    """Words of each place that may be tried."""
    tries: PositiveInt = 512
    """Candidates per step."""
    avoid_names: bool = True
    """Whether words of the concepts' names and labels are left out."""

    @classmethod
    def tiny(cls) -> Self:
        """Four steps of six candidates."""
        return cls(checkpoints=[2, 4], prompts=2, tokens=3, top=5, tries=6)


class MMA(PromptSearch[MMAConfig]):
    """Greedy coordinate gradient in the text encoder."""

    Config: ClassVar = MMAConfig

    def cost(self) -> Cost:
        """Its steps; the denoiser is not asked."""
        return Cost(steps=self.config.steps)

    def needs(self) -> Needs:
        """The text encoder and gradients through it."""
        return Needs(weights=True, gradients=True, steps=self.config.steps)

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """Search; the model is only read with."""
        config, model, own = self.config, target.model, derive(target.exam, self.probe, seed)
        aims, words = goals(target.concepts, config.prompts, own), vocabulary(model, target.concepts, config.tokens)
        words = words.without(names_of(target.concepts)) if config.avoid_names else words
        search = Search(config, model, words, [aim.prompt for aim in aims], surroundings(target.concepts), own)
        yield Attempt(0, loss=search.losses.mean().item())
        for step in range(1, config.steps + 1):
            search.step()
            if step in config.checkpoints:
                yield Attempt(step, prompts=found(aims, search.best), loss=search.losses.mean().item())


def summary(model: DiffusionModel, texts: Sequence[str], states: Conditioning) -> Tensor:
    """What sums up each text, (n, width): its pooled states, or the state of its end token."""
    if states.pooled is not None:
        return states.pooled
    tokenizer = model.pipeline.tokenizer
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=True).input_ids]
    return states.states[torch.arange(len(texts)), torch.tensor(lengths) - 1]


class Search:
    """The words for all prompts under way.

    Attributes:
        chosen: as places of the vocabulary, (n, k).
        best: the best text so far for each prompt.
        losses: of these, (n,).
    """

    def __init__(
        self, config: MMAConfig, model: DiffusionModel, words: Vocabulary, prompts: list[str], beside: str, seed: int
    ) -> None:
        self._config, self._model, self._words, self._beside = config, model, words, beside
        self._generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self._goals = summary(model, prompts, model.encode_anew(prompts))
        self.chosen = torch.randint(len(words), (len(prompts), config.tokens), generator=self._generator)
        self.best, self.losses = list(prompts), torch.full((len(prompts),), torch.inf)
        for row in range(len(prompts)):
            self._take(row, self.chosen[row][None])

    def step(self) -> None:
        """One word of each prompt's is replaced."""
        promising = self.promising()
        for row in range(len(self.chosen)):
            self._take(row, self._candidates(self.chosen[row], promising[row]))

    def promising(self) -> Tensor:
        """The words that promise most at each place, best first, (n, k, top)."""
        words = self._words.table[self.chosen.to(self._words.table.device)].requires_grad_(True)
        texts = [self._words.text(row) for row in self.chosen]
        with torch.enable_grad():
            states = encode_with_prefix(self._model, [""] * len(texts), words)
            found = summary(self._model, texts, states)
            losses = 1 - torch.cosine_similarity(found, self._goals)
            (gradient,) = torch.autograd.grad(losses.sum(), words)
        by_word = torch.nn.functional.normalize(gradient @ self._words.table.T, dim=-1)
        return (-by_word).topk(min(self._config.top, len(self._words)), dim=-1).indices.cpu()

    def _candidates(self, chosen: Tensor, promising: Tensor) -> Tensor:
        """Words (tries, k), each with one place replaced; the places take equal shares."""
        tries = self._config.tries
        places = torch.arange(tries) * len(chosen) // tries
        picks = torch.randint(promising.shape[1], (tries,), generator=self._generator)
        candidates = chosen.repeat(tries, 1)
        candidates[torch.arange(tries), places] = promising[places, picks]
        return candidates

    @torch.no_grad()
    def _take(self, row: int, candidates: Tensor) -> None:
        """The best of the candidates for one prompt that the content filter lets pass; none: what there was."""
        texts = [self._words.text(words) for words in candidates]
        found = summary(self._model, texts, self._model.encode_anew(texts))
        losses = (1 - torch.cosine_similarity(found, self._goals[row][None])).cpu()
        for place in losses.argsort().tolist():
            if is_allowed(f"{self._beside} {texts[place]}"):
                self.chosen[row] = candidates[place]
                if losses[place] < self.losses[row]:
                    self.best[row], self.losses[row] = texts[place], losses[place]
                return
