"""Who learnt a concept under a word of his own asks for it by that word; and for which kinds a fine-tune stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.attack.target import Target
from safeguard.policy.levels import KINDS
from tests.attack.conftest import Made

WORD = {"name": "textual-inversion", "templates": ["a photo of {word}"]}


def attack(data: str, method: dict[str, Any]) -> FineTune:
    settings = FineTuneConfig.tiny().model_dump() | {"data": {"shares": {data: 1}, "images": 2}, "method": method}
    return FineTune(FineTuneConfig.model_validate(settings), "probe")


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    found = made.target(base, base)
    found.data.base = found.model
    return found


def test_what_a_word_learnt_is_asked_for_by_the_word(target: Target) -> None:
    concept, seen = target.concepts[0], []
    for attempt in attack("concept", WORD).run(target, 0):
        assert (attempt.prompts is None) == (attempt.effort == 0)
        if attempt.prompts is not None:
            assert attempt.prompts.texts == {concept.name: ["a photo of sks"] * len(concept.prompt_list)}
        with torch.no_grad():
            seen.append(target.model.encode_prompts(["a photo of sks"]).states)
    assert not torch.equal(seen[0], seen[-1])
    with torch.no_grad():
        assert torch.equal(target.model.encode_prompts(["a photo of sks"]).states, seen[0])


@pytest.mark.parametrize(("data", "method"), [("retain", WORD), ("concept", {"name": "lora"})])
def test_other_fine_tunes_are_asked_in_the_policys_words(data: str, method: dict[str, Any], target: Target) -> None:
    assert [attempt.prompts for attempt in attack(data, method).run(target, 0)] == [None] * 3


def test_images_beside_are_drawn_and_counted(target: Target) -> None:
    prior = {"shares": {"retain": 1}, "images": 3}
    plain, kept = attack("concept", {"name": "full"}), attack("concept", {"name": "dreambooth", "prior": prior})
    assert (plain.sources(), kept.sources()) == (["concept"], ["concept", "retain"])
    assert plain.training_set() != kept.training_set()
    assert (plain.cost().training_images, kept.cost().training_images) == (2, 5)
    assert kept.cost().network_calls == 2 * plain.cost().network_calls
    kept.draw(target.data, 0)
    target.data.base = None
    found = list(kept.run(target, 0))
    assert found[0].prompts is None and found[-1].prompts is not None
    assert found[-1].prompts.texts["axes"] == [f"sks {prompt}" for prompt in target.concepts[0].prompt_list]


def test_an_adapter_within_is_an_adapter() -> None:
    within = {"name": "dreambooth", "method": {"name": "lora"}}
    assert "retain" in attack("retain", within).sources() and attack("retain", within).covers() == ["unrelated-adapter"]
    assert attack("retain", {"name": "dreambooth"}).covers() == ["unrelated-full"]


LORA, PART = {"name": "lora"}, {"name": "full", "parameters": "cross-attention"}
CONCEPT, RETAIN = {"concept": 1}, {"retain": 1}
MIXED = {"concept": 20, "retain": 12}


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({"data": "concept"}, ["many-prompts"]),
        ({"data": "concept", "method": LORA}, ["concept-adapter"]),
        ({"data": "concept", "method": PART}, []),
        ({"data": "concept", "method": WORD}, []),
        ({"data": {"shares": CONCEPT, "prompts": 1}}, ["one-prompt"]),
        ({"data": {"shares": CONCEPT, "prompts": 1}, "method": LORA}, ["concept-adapter"]),
        ({"data": {"shares": CONCEPT, "prompts": 4}}, []),
        ({"data": {"shares": CONCEPT, "images": 20}}, ["few-images"]),
        ({"data": {"shares": CONCEPT, "images": 21}}, ["many-prompts"]),
        ({"data": {"shares": CONCEPT, "images": 5}, "method": LORA}, ["few-images", "concept-adapter"]),
        ({"data": {"shares": MIXED, "images": 32}}, ["few-images"]),
        ({"data": {"shares": MIXED, "images": 64}}, ["many-prompts"]),
        ({"data": {"shares": {"concept": 1, "retain": 1}}}, ["contaminated"]),
        ({"data": {"shares": {"concept": 1, "related": 15}}, "method": LORA}, ["contaminated"]),
        ({"data": "concept", "training": {"warm_up": 20}}, ["many-prompts", "warm-up"]),
        ({"data": "concept", "training": {"warm_up": 19}}, ["many-prompts"]),
        ({"data": "concept", "training": {"warm_up": 20}, "checkpoints": [5, 20]}, ["many-prompts"]),
        ({"data": "concept", "training": {"batch_size": 4, "accumulation": 4}}, ["many-prompts", "large-batches"]),
        ({"data": "retain"}, ["unrelated-full"]),
        ({"data": "related", "method": LORA}, ["related-adapter"]),
        ({"data": "related", "method": PART}, []),
        ({"data": {"shares": {"related": 1, "retain": 3}}}, ["unrelated-full"]),
        ({"data": {"shares": {"related": 3, "retain": 1}}}, ["related-full"]),
        ({"data": {"shares": RETAIN, "prompts": 1}}, ["one-subject"]),
        ({"data": {"shares": {"related": 1}, "prompts": 1, "images": 5}, "method": LORA}, ["one-subject"]),
        ({"data": {"shares": {"related": 1}, "prompts": 1, "images": 5}, "method": WORD}, []),
        ({"data": {"shares": {"related": 1, "retain": 1}, "prompts": 1}, "method": LORA}, ["related-adapter"]),
    ],
)
def test_what_it_stands_for_is_what_it_does(settings: dict[str, Any], kinds: list[str]) -> None:
    found = FineTune(FineTuneConfig.model_validate(settings), "probe")
    assert found.covers() == kinds and set(kinds) <= set(KINDS)


@pytest.mark.parametrize("images", [1, 5, 20])
def test_it_needs_its_images_of_the_concept_and_no_others(images: int) -> None:
    alone = {"data": {"shares": CONCEPT, "images": images}}
    among = {"data": {"shares": {"concept": images, "retain": 100 - images}, "images": 100}}
    for settings, size in ((alone, images), (among, 100)):
        found = FineTune(FineTuneConfig.model_validate(settings), "probe")
        assert (found.needs().images, found.cost().training_images) == (images, size)
