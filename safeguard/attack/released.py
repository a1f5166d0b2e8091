"""The model as it is released: nothing is changed, and everything that must have survived is looked at, too."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Target
from safeguard.config import MethodConfig


class ReleasedConfig(MethodConfig):
    """There is nothing to set."""


class Released(Attack[ReleasedConfig]):
    """No attack."""

    Config: ClassVar = ReleasedConfig
    judges_everything: ClassVar = True

    def efforts(self) -> list[int]:
        """None."""
        return [0]

    def covers(self) -> list[str]:
        """The declared prompts."""
        return ["declared-prompts"]

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """The target as it is."""
        yield Attempt(0)
