"""Every resilience objective: around a method that descends and around one that edits, and around every unlearner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeguard.harden import phase
from safeguard.harden.engine import harden
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import ResilienceMethod, UnlearnerMethod
from safeguard.registry import resilience, unlearners
from safeguard.resilience.base import Facts, Objective
from safeguard.unlearn.base import HardeningContext
from tests.contexts import learning
from tests.contracts.runs import Killed, context, tiny, weights

every_objective = pytest.mark.parametrize("name", resilience.names())
SURROUNDING = [name for name in resilience.names() if name != "none"]
"""Objectives with a phase of their own."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def made(name: str, around: HardeningContext) -> Objective:
    """Around ESD."""
    unlearner = unlearners.make(UnlearnerMethod.model_validate(tiny(unlearners, "esd")), around)
    return resilience.make(ResilienceMethod.model_validate(tiny(resilience, name)), around, unlearner)


def step(objective: Objective, number: int) -> tuple[list[torch.Tensor], Facts]:
    """The gradients of one outer step, and what is recorded of it."""
    values = list(learning(objective.trained()).values())
    for value in values:
        value.grad = None
    facts = objective.compute_gradients(number)
    return [value.grad.clone() for value in values if value.grad is not None], facts


@every_objective
def test_its_tiny_settings_are_such_as_a_policy_may_have(name: str) -> None:
    method = ResilienceMethod.model_validate(tiny(resilience, name))
    assert [problem.line() for problem in method_problems(method)] == []
    wrong = ResilienceMethod.model_validate(tiny(resilience, name) | {"no such setting": 1})
    assert len(method_problems(wrong)) == 1


@every_objective
def test_a_step_leaves_gradients_and_gives_the_weights_back(name: str) -> None:
    around = context()
    objective = made(name, around)
    before = weights(around)
    found, facts = step(objective, 0)
    assert len(found) == len(objective.trained()) and any(gradient.any() for gradient in found)
    assert all(gradient.isfinite().all() for gradient in found)
    assert facts and all(isinstance(value, float) for value in facts.values())
    after = weights(around)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@every_objective
def test_a_step_depends_on_seed_and_number_alone(name: str) -> None:
    fresh, used = made(name, context()), made(name, context())
    step(used, 0)
    expected, again, other = step(fresh, 2), step(used, 2), step(used, 3)
    assert again[1] == expected[1] and all(map(torch.equal, again[0], expected[0]))
    assert not all(map(torch.equal, other[0], expected[0]))


@every_objective
@pytest.mark.parametrize("unlearner", ["esd", "uce"])
def test_a_killed_run_ends_at_the_same_weights(unlearner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (unlearner, name) == ("uce", "none"):
        pytest.skip("a closed form alone takes no step")
    monkeypatch.setattr(phase, "CHECKPOINT_SECONDS", 0.0)
    settings = {"unlearner": tiny(unlearners, unlearner), "resilience": tiny(resilience, name)}
    whole = context(**settings)
    title, steps = harden(whole, "whole").phases[-1]
    assert steps > 3, "too few steps to be killed among them"
    with pytest.raises(KeyboardInterrupt):
        harden(context(Killed(title, after=2), **settings), "killed")
    resumed = context(**settings)
    record = harden(resumed, "killed")
    assert f"{title}: continuing at step 2 of {steps}" in record.notes
    for parameter, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[parameter]), parameter


@pytest.mark.parametrize("unlearner", unlearners.names())
@pytest.mark.parametrize("name", SURROUNDING)
def test_it_goes_around_any_unlearner(unlearner: str, name: str) -> None:
    run = context(unlearner=tiny(unlearners, unlearner), resilience=tiny(resilience, name))
    before = weights(run)
    record = harden(run, "base")
    after = weights(run)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert all(value.isfinite().all() for value in after.values())
    assert any(series.endswith("gradient norm") and told[-1] for series, told in record.series.items())
