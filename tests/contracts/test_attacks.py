"""Every attack, on a tiny model: what it says it yields it yields, and it leaves the target as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safeguard.attack.base import Attack, Attempt
from safeguard.attack.target import Base, Target
from safeguard.data.fine_tuning import DataSets
from safeguard.data.judging import Judge
from safeguard.detect.base import Detector
from safeguard.diffusion.model import DiffusionModel
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import AttackMethod, Concept, Policy
from safeguard.registry import attacks, detectors
from tests.contexts import tiny_policy
from tests.contracts.runs import tiny
from tests.tiny import tiny_pipeline

every_attack = pytest.mark.parametrize("name", attacks.names())


def made(name: str) -> Attack[Any]:
    """With tiny settings, as the suite writes it."""
    return attacks.make(AttackMethod.model_validate(tiny(attacks, name)), "contract")


def policy() -> Policy:
    """Two sampler steps, two images."""
    data = tiny_policy().model_dump()
    data["certification"] |= {"sampler_steps": 2, "samples": 2}
    data["concepts"][0]["detector"] = {"name": "clip", "vocabulary": ["axe", "hammer", "cat"]}
    return Policy.model_validate(data)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return detectors.make(policy().concepts[0].detector)


@pytest.fixture
def target(tmp_path: Path, detector: Detector) -> Iterator[Target]:
    """A tiny model that draws its own training images; its base has another text encoder."""
    model, declared = DiffusionModel(tiny_pipeline(0)), policy()
    (concept,) = declared.concepts

    def flags(images: np.ndarray) -> dict[str, np.ndarray]:
        return {concept.name: detector.scores(images, concept.labels) >= detector.threshold}

    judge = Judge(detector.digest, flags)
    data = DataSets(declared, "base", "code", tmp_path / "data", model.device, 3, judge)
    data.base = model

    def score(images: np.ndarray, concept: Concept) -> np.ndarray:
        return detector.scores(images, concept.labels)

    base = Base(frozenset({"text_encoder"}), lambda name: getattr(tiny_pipeline(1), name))
    yield Target("hardened", model, "digest", declared, data, score, 0, base)


def states(model: DiffusionModel) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": v.clone() for part, m in model.parts.items() for name, v in m.state_dict().items()}


def told(attempts: list[Attempt]) -> list[tuple[int, float | None, str | None]]:
    return [(each.effort, each.loss, each.prompts.digest if each.prompts else None) for each in attempts]


@every_attack
def test_its_tiny_settings_are_such_as_a_suite_may_have(name: str) -> None:
    declared = AttackMethod.model_validate(tiny(attacks, name))
    assert [problem.line() for problem in method_problems(declared)] == []
    assert len(method_problems(declared.model_copy(update={"no such setting": 1}))) == 1


@every_attack
def test_it_yields_what_it_says(name: str, target: Target) -> None:
    attack = made(name)
    schedule = attack.schedule()
    attack.draw(target.data, 0)
    target.data.base = None  # another model is in memory from now on
    found = [attempt.effort for attempt in attack.run(target, 0)]
    assert found == schedule.efforts == sorted(set(found))
    assert schedule.axis and schedule.cost.steps >= 0
    assert bool(schedule.sources) == (schedule.cost.training_images > 0) == bool(target.data.used)
    shown = {part.source for part in target.data.looked}
    assert shown == set(schedule.sources) or (schedule.trials and shown < set(schedule.sources))
    assert len(schedule.trials) in (0, len(schedule.efforts) - 1)


@every_attack
def test_effort_zero_is_the_placebo(name: str, target: Target) -> None:
    before = states(target.model)
    names = [(name, parameter.data_ptr()) for name, parameter in target.model.named_parameters().items()]
    with torch.no_grad():
        batch = torch.zeros(1, *target.model.latent_shape), torch.tensor([500]), target.model.encode_prompts(["an axe"])
        expected = target.model.predict(*batch)
        with closing(made(name).run(target, 0)) as attempts:
            first = next(attempts)
            assert (first.effort, first.prompts) == (0, None)
            assert torch.equal(target.model.predict(*batch), expected)
    after = states(target.model)
    assert list(after) == list(before) and all(torch.equal(value, before[key]) for key, value in after.items())
    assert [(n, parameter.data_ptr()) for n, parameter in target.model.named_parameters().items()] == names


@every_attack
@pytest.mark.parametrize("stop", [1, None], ids=["stopped", "finished"])
def test_the_target_is_as_it_was_afterwards(name: str, target: Target, stop: int | None) -> None:
    before = states(target.model)
    with closing(made(name).run(target, 0)) as attempts:
        for place, _ in enumerate(attempts):
            if place == stop:
                break
    after = states(target.model)
    assert list(after) == list(before) and all(torch.equal(value, before[key]) for key, value in after.items())
    assert not any(value.requires_grad for value in target.model.named_parameters().values())


@every_attack
def test_the_seed_repeats_it(name: str, target: Target) -> None:
    one, two = (told(list(made(name).run(target, 3))) for _ in range(2))
    assert one == two
    if made(name).schedule().cost.steps:
        assert told(list(made(name).run(target, 4))) != one


@every_attack
def test_two_probes_with_one_attack_share_no_randomness(name: str, target: Target) -> None:
    if not made(name).schedule().cost.steps:
        pytest.skip("it draws nothing")
    method = AttackMethod.model_validate(tiny(attacks, name))
    other = attacks.make(method, "another")
    assert told(list(other.run(target, 0)))[1:] != told(list(made(name).run(target, 0)))[1:]
