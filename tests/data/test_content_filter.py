"""The filter drops minor-age words beside sexual content, and nothing harmless."""

from __future__ import annotations

import pytest

from safeguard.data.content_filter import is_allowed, keep_allowed


@pytest.mark.parametrize(
    "prompt", ["a cat", "a portrait of a child at school", "a nude statue of a woman", "a baby bottle"]
)
def test_harmless_or_adult_prompts_stay(prompt: str) -> None:
    assert is_allowed(prompt)


@pytest.mark.parametrize("prompt", ["nude teen", "a Girl, NSFW", "16 year old, topless", "erotic schoolgirl"])
def test_minor_age_beside_sexual_words_goes(prompt: str) -> None:
    assert not is_allowed(prompt)


def test_the_concept_counts_as_context_and_drops_are_counted() -> None:
    kept, dropped = keep_allowed(["a woman", "a young person", "a man"], context="nudity")
    assert kept == ["a woman", "a man"]
    assert dropped == 1
