"""What a policy says twice, and what contradicts itself: prompts, anchors and labels compared as a model reads them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from safeguard.policy.reading import FieldPath
from safeguard.policy.schema import Concept, Policy, Subject
from safeguard.policy.validation import Problem, fault, field_name

Placed = tuple[FieldPath, str]


def as_read(text: str) -> str:
    """A text as tokenizers read it: letter case, kinds and numbers of blanks, and Unicode's normal forms are one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def repeated(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of texts that are read like an earlier one, each with the place of that one."""
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        known = first.setdefault(as_read(text), place)
        if known != place:
            yield place, known


def subjects(policy: Policy) -> Iterator[tuple[FieldPath, Subject]]:
    """Every concept, related and retained subject, with its field."""
    for i, concept in enumerate(policy.concepts):
        yield ("concepts", i), concept
        for j, related in enumerate(concept.related):
            yield ("concepts", i, "related", j), related
    for i, subject in enumerate(policy.retain):
        yield ("retain", i), subject


def contradictions(policy: Policy) -> Iterator[Problem]:
    """Every pair of texts that must differ and does not."""
    for path, subject in subjects(policy):
        for field, texts in (("prompts", subject.prompt_list), ("labels", subject.labels)):
            for place, known in repeated(texts):
                yield Problem(
                    (*path, field, place),
                    f"{texts[place]!r} is read like {texts[known]!r}: each counts once, so take one out",
                    also=(*path, field, known),
                )
    yield from _kept_and_erased(policy)
    yield from _anchors(policy)


def _kept_and_erased(policy: Policy) -> Iterator[Problem]:
    """Nothing can be erased and kept."""
    concepts = list(enumerate(policy.concepts))
    prompts = dict(row for i, concept in reversed(concepts) for row in _erased(i, concept))
    labels = {
        as_read(label): ("concepts", i, "labels", k) for i, c in reversed(concepts) for k, label in enumerate(c.labels)
    }
    for path, subject in subjects(policy):
        if isinstance(subject, Concept):
            continue
        for field, texts, erased in (("prompts", subject.prompt_list, prompts), ("labels", subject.labels, labels)):
            for place, text in enumerate(texts):
                if other := erased.get(as_read(text)):
                    what = f"{text!r} is to be kept here and erased there: take it out of one of them"
                    yield Problem((*path, field, place), what, also=other)


def _erased(index: int, concept: Concept) -> Iterator[tuple[str, FieldPath]]:
    for place, prompt in enumerate(concept.prompt_list):
        yield as_read(prompt), ("concepts", index, "prompts", place)


def _anchors(policy: Policy) -> Iterator[Problem]:
    """An anchor asks for nothing that is to be erased, and one prompt is led to one anchor."""
    erased = dict(row for i, concept in reversed(list(enumerate(policy.concepts))) for row in _erased(i, concept))
    led: dict[str, tuple[str, FieldPath]] = {}
    for i, concept in enumerate(policy.concepts):
        said: set[str] = set()
        for place, (prompt, anchor) in enumerate(zip(concept.prompt_list, concept.anchor_list, strict=True)):
            path: FieldPath = (
                ("concepts", i, "anchor", place) if isinstance(concept.anchor, list) else ("concepts", i, "anchor")
            )
            asked = as_read(anchor)
            if asked in erased and asked not in said:
                said.add(asked)
                what = f"the anchor {anchor!r} is itself to be erased: let it ask for something that may be drawn"
                yield Problem(path, what, also=erased[asked])
            goal, other = led.setdefault(as_read(prompt), (asked, ("concepts", i, "prompts", place)))
            if goal != asked and other[:2] != path[:2]:
                what = f"{prompt!r} is a prompt of two concepts with different anchors: give both the same anchor"
                yield Problem(("concepts", i, "prompts", place), what, also=other)


def cut_prompts(policy: Policy, tokenize: Callable[[str], Sequence[int]], context: int) -> list[Placed]:
    """Prompts that are longer than what a text encoder reads, with their fields.

    Args:
        tokenize: a prompt's tokens, start and end included, without truncation.
        context: tokens that the encoder reads, start and end included.

    Raises:
        PolicyFault: two declared prompts are one after truncation, or what is erased is kept then.
    """
    problems, cut = [], []
    seen: dict[tuple[int, ...], tuple[FieldPath, str, bool]] = {}
    for path, subject in subjects(policy):
        for place, prompt in enumerate(subject.prompt_list):
            tokens, field = tuple(tokenize(prompt)), (*path, "prompts", place)
            if len(tokens) > context:
                cut.append((field, prompt))
            erased = isinstance(subject, Concept)
            first, other, gone = seen.setdefault(tokens[: context - 1], (field, prompt, erased))
            if first != field and other != prompt and (first[:-2] == path or gone != erased):
                what = f"of {prompt!r} and {other!r} the model reads the same {context} tokens: they are one prompt"
                problems.append(
                    Problem(field, f"{what}; shorten them to where they differ, or take one out", also=first)
                )
    if problems:
        raise fault(problems, None)
    return cut


def truncations(policy: Policy, tokenizer: Any) -> list[str]:
    """A note for every prompt of which the model reads only the beginning.

    Args:
        tokenizer: of transformers, that of the base model.

    Raises:
        PolicyFault: prompts that must differ are one prompt then.
    """
    context = tokenizer.model_max_length
    cut = cut_prompts(policy, lambda prompt: tokenizer(prompt, verbose=False).input_ids, context)
    return [
        f"{field_name(path)}: the model reads only the first {context} tokens of {prompt!r}" for path, prompt in cut
    ]
