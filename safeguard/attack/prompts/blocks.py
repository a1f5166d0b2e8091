"""Searches that step by gradients and compare what they have from time to time: their steps, counted and looked at."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol, TypeVar

from pydantic import PositiveInt

from safeguard.attack.base import Attempt
from safeguard.attack.prompts.base import GuidedSearch, GuidedSearchConfig, Kept


class BlockSearchConfig(GuidedSearchConfig):
    """Settings of a search in blocks."""

    block: PositiveInt = 40
    """Steps between two comparisons with the best prompts so far."""


B = TypeVar("B", bound=BlockSearchConfig)


class Stepping(Protocol):
    """A search under way."""

    def step(self) -> None:
        """One step, for every image."""

    def texts(self) -> list[str]:
        """The prompt of each image as it is now."""


class BlockSearch(GuidedSearch[B]):
    """A search in blocks."""

    def compared(self) -> list[int]:
        """The steps after which prompts are compared with the best so far: the ends of blocks, and checkpoints."""
        config = self.config
        return [step for step in range(1, config.steps + 1) if not step % config.block or step in config.checkpoints]

    def follow(self, search: Stepping, kept: Kept) -> Generator[Attempt, None, None]:
        """Step, compare, and yield the best prompts at every checkpoint."""
        compared = self.compared()
        for step in range(1, self.config.steps + 1):
            search.step()
            if step in compared:
                kept.offer(search.texts())
            if step in self.config.checkpoints:
                yield Attempt(step, prompts=kept.prompts, loss=kept.loss)
