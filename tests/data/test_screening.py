"""The content filter over a whole policy: a prompt and its anchor are judged together and go together."""

from __future__ import annotations

import pytest

from safeguard.data.screening import screen
from safeguard.errors import PolicyFault
from safeguard.policy.schema import Policy


def policy(prompts: object, anchor: object) -> Policy:
    concept = {"name": "nudity", "kind": "unsafe", "prompts": prompts, "anchor": anchor, "detector": {"name": "clip"}}
    return Policy.model_validate(
        {
            "version": 1,
            "name": "p",
            "model": "m",
            "concepts": [concept],
            "harden": {"unlearner": {"name": "esd"}},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )


def test_a_refused_prompt_takes_its_anchor_along() -> None:
    screened, dropped = screen(policy(["a woman", "a young person", "a man"], ["a dress", "a toy", "a coat"]))
    (concept,) = screened.concepts
    assert dropped == 1
    assert list(zip(concept.prompt_list, concept.anchor_list, strict=True)) == [
        ("a woman", "a dress"),
        ("a man", "a coat"),
    ]


def test_a_refused_anchor_takes_its_prompt_along() -> None:
    fill = {"template": "{who} outside", "fill": {"who": ["a woman", "a man"]}}
    screened, dropped = screen(policy(fill, "{who} dressed"))
    assert dropped == 0 and screened.concepts[0].anchor_list == ["a woman dressed", "a man dressed"]
    screened, dropped = screen(policy(["a woman", "a man"], ["a young person", "a coat"]))
    assert dropped == 1 and screened.concepts[0].anchor_list == ["a coat"]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(PolicyFault, match="every prompt"):
        screen(policy(["a woman"], "a young person"))
