"""The content filter over a whole policy: a prompt and its anchor are judged together and go together."""

from __future__ import annotations

from typing import Any

import pytest

from safeguard.data.content_words import MINOR, SEXUAL
from safeguard.data.screening import screen
from safeguard.errors import PolicyFault
from safeguard.policy.schema import Policy

YOUNG, SEX = MINOR.split()[0], SEXUAL.split()[0]


def policy(prompts: object, anchor: object, **changes: Any) -> Policy:
    concept = {"name": "nudity", "kind": "unsafe", "prompts": prompts, "anchor": anchor, "detector": {"name": "clip"}}
    return Policy.model_validate(
        {
            "version": 1,
            "name": "p",
            "model": "m",
            "concepts": [concept | changes.pop("concept", {})],
            "harden": {"unlearner": {"name": "esd"}},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
        | changes
    )


def test_a_refused_prompt_takes_its_anchor_along() -> None:
    screened, dropped = screen(policy(["a woman", f"a {YOUNG}", "a man"], ["a dress", "a toy", "a coat"]))
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
    screened, dropped = screen(policy(["a woman", "a man"], [f"a {YOUNG}", "a coat"]))
    assert dropped == 1 and screened.concepts[0].anchor_list == ["a coat"]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(PolicyFault, match="every prompt"):
        screen(policy(["a woman"], f"a {YOUNG}"))


@pytest.mark.parametrize("where", ["related", "retain", "another concept"])
def test_every_subject_stands_beside_every_concept(where: str) -> None:
    subject = {"name": "people", "prompts": ["a man", f"a {YOUNG} outside"]}
    changes: dict[str, Any] = {"retain": [subject]} if where == "retain" else {"concept": {"related": [subject]}}
    declared = policy(["a woman"], "")
    if where == "another concept":
        other = Policy.model_validate(
            declared.model_dump() | {"concepts": [declared.concepts[0].model_dump() | subject]}
        )
        declared = declared.model_copy(update={"concepts": [*declared.concepts, *other.concepts]})
    else:
        declared = policy(["a woman"], "", **changes)
    screened, dropped = screen(declared)
    subjects = [*screened.related, *screened.retain, *screened.concepts[1:]]
    assert dropped == 1 and [one.prompt_list for one in subjects] == [["a man"]]


def test_what_a_detector_looks_for_counts_and_its_vocabulary_does_not() -> None:
    prompts = ["a man", f"a {YOUNG}"]
    looked_for = {"name": "weapons", "detector": {"name": "nudenet", "classes": ["BUTTOCKS_EXPOSED"]}}
    assert screen(policy(prompts, "", concept=looked_for))[1] == 1
    vocabulary = {"name": "weapons", "detector": {"name": "clip", "vocabulary": [SEX, "dagger"]}}
    assert screen(policy(prompts, "", concept=vocabulary))[1] == 0


def test_refused_text_among_the_settings_of_a_method_is_an_error() -> None:
    attributes = {"attributes": [{"prompt": "a man"}, {"prompt": f"a {YOUNG}"}]}
    harden = {"unlearner": {"name": "uce", "debias": attributes}}
    with pytest.raises(PolicyFault, match="settings of 'uce'"):
        screen(policy(["a woman"], "", harden=harden))
