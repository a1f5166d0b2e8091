"""The content filter applied to a whole policy, before anything is generated from it."""

from __future__ import annotations

from typing import TypeVar

from safeguard.data.content_filter import keep_allowed
from safeguard.errors import PolicyFault
from safeguard.policy.schema import Concept, Policy, Subject

S = TypeVar("S", bound=Subject)


def _screen(subject: S, context: str) -> tuple[S, int]:
    """A subject without refused prompts; a concept's prompt goes with its anchor when either is refused."""
    prompts = subject.prompt_list
    anchors = subject.anchor_list if isinstance(subject, Concept) else prompts
    kept = [
        prompt
        for prompt, anchor in zip(prompts, anchors, strict=True)
        if not keep_allowed([prompt, anchor], context=context)[1]
    ]
    if not kept:
        raise PolicyFault(
            f"every prompt of {subject.name!r} was removed by the content filter",
            fix="minor-age words beside sexual content are never generated; declare adult-only prompts",
        )
    dropped = len(prompts) - len(kept)
    return (subject.keeping(kept) if dropped else subject), dropped


def screen(policy: Policy) -> tuple[Policy, int]:
    """The policy without refused prompts, and how many were dropped."""
    total = 0
    concepts: list[Concept] = []
    for concept in policy.concepts:
        context = " ".join([concept.name, *concept.labels])
        kept, dropped = _screen(concept, context)
        related = []
        for subject in concept.related:
            allowed, more = _screen(subject, context)
            related.append(allowed)
            dropped += more
        concepts.append(kept.model_copy(update={"related": related}))
        total += dropped
    retain = []
    for subject in policy.retain:
        allowed, dropped = _screen(subject, subject.name)
        retain.append(allowed)
        total += dropped
    return policy.model_copy(update={"concepts": concepts, "retain": retain}), total
