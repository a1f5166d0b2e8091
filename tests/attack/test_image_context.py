"""Canvases without the concept: whose they are, that every variant has the same, and what is covered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.image_context import ImageContext, ImageContextConfig
from safeguard.attack.target import Target
from safeguard.diffusion.canvases import OnCanvas
from safeguard.policy.suite import Suite, lacks
from safeguard.probe.units import schedules
from tests.attack.conftest import Made
from tests.contexts import tiny_policy


def attack(probe: str = "probe", **settings: Any) -> ImageContext:
    return ImageContext(ImageContextConfig.model_validate(ImageContextConfig.tiny().model_dump() | settings), probe)


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    """With its base in memory, which draws the canvases."""
    found = made.target(base, base)
    found.data.base = found.model
    return found


def samplers(found: ImageContext, target: Target, seed: int = 0) -> list[OnCanvas]:
    return [each.sampler for each in found.run(target, seed) if isinstance(each.sampler, OnCanvas)]


def test_the_canvases_are_those_of_related_and_retained_subjects(target: Target) -> None:
    images = target.data.get(attack().config.canvases, 0)
    assert sorted(images.captions) == ["a cat", "a cat", "a hammer"]
    for sampler in samplers(attack(), target):
        assert torch.equal(sampler.canvases, images.mean)


def test_labels_say_what_it_is_and_variants_share_their_canvases(target: Target) -> None:
    found = attack(strengths=[0.7, 0.9], holes=[0.25])
    attempts = list(found.run(target, 0))
    assert [each.effort for each in attempts] == found.efforts() == [0, 1, 2, 3]
    assert [each.label.replace("\N{NARROW NO-BREAK SPACE}", " ") for each in attempts] == [
        "",
        "image to image, 70 % of the steps",
        "image to image, 90 % of the steps",
        "inpainting, a square of 25 % of the side",
    ]
    assert attempts[0].sampler is None
    first, second, hole = samplers(found, target)
    assert first.chosen(range(20)) == second.chosen(range(20)) == hole.chosen(range(20))
    assert (first.mask, first.strength, second.strength, hole.strength) == (None, 0.7, 0.9, 1.0)
    assert hole.mask is not None and hole.mask.sum() == 4


def test_which_canvas_follows_from_seed_probe_and_examination(target: Target) -> None:
    def chosen(found: ImageContext, seed: int = 0) -> list[int]:
        return samplers(found, target, seed)[0].chosen(range(50))

    mine = chosen(attack())
    assert mine == chosen(attack(strengths=[0.3]))
    assert mine != chosen(attack("other")) and mine != chosen(attack(), seed=1)


def test_a_canvas_of_the_concept_is_refused() -> None:
    for shares in ({"concept": 1}, {"retain": 1, "concept": 1}):
        with pytest.raises(ValidationError, match="leaks it"):
            attack(canvases={"shares": shares})
    with pytest.raises(ValidationError, match="nothing is tried"):
        attack(strengths=[], holes=[])


def test_both_kinds_stand_for_images_as_context() -> None:
    assert attack().covers() == ["image-context"]
    assert attack(holes=[]).covers() == attack(strengths=[]).covers() == []
    assert attack(holes=[1.0]).covers() == attack(strengths=[1.0]).covers() == [], "nothing is left of the canvas"
    needs = attack().needs()
    assert needs.image_input and not needs.weights and not needs.images


def test_a_policy_without_such_subjects_is_told_so_before_anything_is_drawn() -> None:
    declared = tiny_policy()
    alone = declared.model_copy(update={"concepts": [declared.concepts[0].model_copy(update={"related": []})]})
    pictures = {"id": "pictures", "title": "Pictures", "intent": "none", "attack": {"name": "image-context"}}
    suite = Suite.model_validate({"name": "mine", "probes": [pictures]})
    assert lacks(declared, suite, schedules(suite)) == []
    (problem,) = lacks(alone, suite, schedules(suite))
    assert "probe 'pictures' of suite 'mine' needs images of related subjects, and there are none" in problem.line()
