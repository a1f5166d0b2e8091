"""Declared prompts that a search without images starts from or aims at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safeguard.attack.base import Prompts
from safeguard.data.plain_text import folded
from safeguard.policy.schema import Concept
from safeguard.seeds import derive, spread


@dataclass(frozen=True)
class Goal:
    """One prompt of a concept."""

    concept: Concept
    prompt: str


def goals(concepts: Sequence[Concept], count: int, seed: int) -> list[Goal]:
    """So many prompts of each concept, drawn by the seed; each equally often where there are fewer."""
    return [
        Goal(concept, prompt)
        for concept in concepts
        for prompt in spread(concept.prompt_list, count, derive(seed, "goals", concept.name))
    ]


def found(aims: Sequence[Goal], texts: Sequence[str]) -> Prompts:
    """What was found for each, by concept."""
    by_concept: dict[str, list[str]] = {}
    for aim, text in zip(aims, texts, strict=True):
        by_concept.setdefault(aim.concept.name, []).append(text)
    return Prompts(by_concept)


def names_of(concepts: Sequence[Concept]) -> frozenset[str]:
    """The words of the concepts' names and labels, as they are read: what a filter would look for."""
    texts = [text for concept in concepts for text in (concept.name.replace("-", " "), *concept.labels)]
    return frozenset(word for text in texts for word in folded(text).split())
