"""Who learnt a concept under a word of his own asks for it by that word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.attack.finetune import FineTune, FineTuneConfig
from safeguard.attack.target import Target
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
