"""Prompts of the user's own, paraphrases or translations, in lists or around the declared ones; needs no weights.

What a policy declares is how its author calls the concept; others say it in other words and languages. A list has
prompts of every concept; a template is put around every declared prompt of every concept. All of them pass the content
filter before they are drawn.
"""

from __future__ import annotations

import string
from collections.abc import Generator, Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from safeguard.attack.base import Attempt, Prompts, Variants
from safeguard.attack.target import Target
from safeguard.config import MethodConfig
from safeguard.policy.schema import Identifier, Text


def _one_blank(template: str) -> str:
    """A template as it is.

    Raises:
        ValueError: it has not exactly one ``{}``.
    """
    blanks = [parts[1:] for parts in string.Formatter().parse(template) if parts[1] is not None]
    if blanks != [("", "", None)]:
        raise ValueError("a template has exactly one {}, where the declared prompt stands")
    if template.strip() == "{}":
        raise ValueError("a template says something beside the declared prompt")
    return template


Template = Annotated[Text, AfterValidator(_one_blank)]
Prompted = Annotated[dict[Identifier, Annotated[list[Text], Field(min_length=1)]], Field(min_length=1)]


class OwnPromptsConfig(MethodConfig):
    """What they are, and the prompts; one variant per list and template."""

    kind: Literal["paraphrases", "languages"]
    """What they stand for: other words, or other languages."""
    lists: dict[Text, Prompted] = {}
    """Name of a list -> concept -> prompts: ``{german: {axes: [eine Axt, ein Beil]}}``."""
    templates: list[Template] = []
    """Around every declared prompt: ``a photo of {}``."""

    @classmethod
    def tiny(cls) -> Self:
        """Two templates, which fit every policy."""
        return cls(kind="paraphrases", templates=["a photo of {}", "{}, oil painting"])

    @model_validator(mode="after")
    def _complete(self) -> OwnPromptsConfig:
        if not self.lists and not self.templates:
            raise ValueError("there are no prompts: give lists or templates")
        first, *others = (set(prompts) for prompts in self.lists.values()) if self.lists else [set()]
        if any(other != first for other in others):
            raise ValueError("every list has prompts of the same concepts: all of the policy's")
        return self


class OwnPrompts(Variants[OwnPromptsConfig]):
    """Ask in other words."""

    Config: ClassVar = OwnPromptsConfig

    def count(self) -> int:
        """One per variant."""
        return len(self.config.lists) + len(self.config.templates)

    def concepts(self) -> list[str]:
        """Those of the lists."""
        return sorted(next(iter(self.config.lists.values()), {}))

    def covers(self) -> list[str]:
        """What the settings say; a template around a declared prompt is no other language."""
        return [self.config.kind] if self.config.kind == "paraphrases" or self.config.lists else []

    def run(self, target: Target, seed: int) -> Generator[Attempt, None, None]:
        """The declared prompts first."""
        yield Attempt(0)
        for number, (label, prompts) in enumerate(self._variants(target), start=1):
            yield Attempt(number, prompts=prompts, label=label)

    def _variants(self, target: Target) -> Iterator[tuple[str, Prompts]]:
        for name, prompts in self.config.lists.items():
            yield name, Prompts(prompts)
        for template in self.config.templates:
            around = {each.name: [template.format(text) for text in each.prompt_list] for each in target.concepts}
            yield f"“{template}”", Prompts(around)
