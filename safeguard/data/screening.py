"""The content filter applied to a whole policy, before anything is generated from it.

Everything that a policy has drawn or led towards is judged beside the names and labels of its concepts and what their
detectors look for: one model draws all of it, and fine-tunes see it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from safeguard.data.content_filter import is_allowed
from safeguard.errors import PolicyFault
from safeguard.policy.schema import Concept, Method, Policy, Subject

S = TypeVar("S", bound=Subject)
_NEVER = "minor-age words beside sexual content are never generated; declare adult-only prompts"


def screen(policy: Policy) -> tuple[Policy, int]:
    """The policy without refused prompts, and how many were dropped.

    Raises:
        PolicyFault: nothing is left of a subject, or the settings of a method hold refused text.
    """
    context = surroundings(policy.concepts)
    for method in (policy.harden.unlearner, policy.harden.resilience):
        _check_settings(method, context)
    concepts, dropped = _screened(policy.concepts, context)
    for place, concept in enumerate(concepts):
        related, more = _screened(concept.related, context)
        concepts[place] = concept.model_copy(update={"related": related})
        dropped += more
    retain, more = _screened(policy.retain, context)
    return policy.model_copy(update={"concepts": concepts, "retain": retain}), dropped + more


def surroundings(concepts: Sequence[Concept]) -> str:
    """What every prompt of a policy stands beside: its concepts, and what their detectors look for."""
    words = [word for concept in concepts for word in [concept.name, *concept.labels]]
    looked_for = (text for concept in concepts for text in _texts(_without_vocabulary(concept.detector)))
    return " ".join([*words, *looked_for])


def _without_vocabulary(detector: Method) -> dict[str, Any]:
    """Its settings, less what else an image may show."""
    return {name: value for name, value in detector.settings.items() if name != "vocabulary"}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_settings(method: Method, context: str) -> None:
    for text in _texts(method.settings):
        if not is_allowed(f"{context} {text}"):
            raise PolicyFault(
                f"the content filter refuses a text among the settings of {method.name!r}: {text!r}", fix=_NEVER
            )


def _screened(subjects: list[S], context: str) -> tuple[list[S], int]:
    """Subjects without refused prompts; a concept's prompt goes with its anchor when either is refused."""
    found, dropped = [], 0
    for subject in subjects:
        prompts = subject.prompt_list
        anchors = subject.anchor_list if isinstance(subject, Concept) else [""] * len(prompts)
        beside = " ".join([context, subject.name, *subject.labels])
        rows = zip(prompts, anchors, strict=True)
        kept = [prompt for prompt, anchor in rows if is_allowed(f"{beside} {prompt} {anchor}")]
        if not kept:
            raise PolicyFault(f"every prompt of {subject.name!r} was removed by the content filter", fix=_NEVER)
        found.append(subject.keeping(kept) if len(kept) < len(prompts) else subject)
        dropped += len(prompts) - len(kept)
    return found, dropped
