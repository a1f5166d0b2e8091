"""Every unlearner, alone and on concepts of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.harden import phase
from safeguard.harden.engine import harden
from safeguard.policy.methods import method_problems
from safeguard.policy.schema import UnlearnerMethod
from safeguard.registry import unlearners
from safeguard.unlearn.base import Unlearner
from tests.contexts import MIXED, apart, learning, seeded
from tests.contracts.runs import Killed, context, tiny, weights

every_unlearner = pytest.mark.parametrize("name", unlearners.names())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=unlearners.names())
def method(request: pytest.FixtureRequest) -> Unlearner:
    """Each in turn, ready to descend or to edit; where it descends, after two steps."""
    declared = UnlearnerMethod.model_validate(tiny(unlearners, request.param))
    made: Unlearner = unlearners.make(declared, context())
    made.prepare()
    if made.steps:
        learning(made.trained())
        for _ in range(2):
            made.loss(seeded(0))
            made.after_step()
    return made


@every_unlearner
def test_its_tiny_settings_are_such_as_a_policy_may_have(name: str) -> None:
    method = UnlearnerMethod.model_validate(tiny(unlearners, name))
    assert [problem.line() for problem in method_problems(method)] == []
    wrong = UnlearnerMethod.model_validate(tiny(unlearners, name) | {"no such setting": 1})
    assert len(method_problems(wrong)) == 1


@every_unlearner
def test_it_changes_exactly_what_it_declares(name: str) -> None:
    run = context(unlearner=tiny(unlearners, name))
    before, teacher = weights(run), [value.clone() for value in run.teacher.named_parameters().values()]
    record = harden(run, "base")  # which refuses a model in which anything else changed
    changed = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert changed and record.checks["tensors"]["unchanged"] == []
    assert all(map(torch.equal, run.teacher.named_parameters().values(), teacher)), "the teacher is frozen"
    assert all(value.isfinite().all() for value in weights(run).values())
    assert set(record.series) <= {"erasure loss", "preservation loss"}


def test_its_losses_repeat_by_seed(method: Unlearner) -> None:
    if not method.steps:
        assert method.closed_form, "it neither descends nor edits"
        with pytest.raises(NotImplementedError, match="closed form"):
            method.loss(seeded(0))
        return
    first, again, other = (method.loss(seeded(seed)).item() for seed in (1, 1, 2))
    assert first == again != other
    kept = [method.preservation(seeded(seed)) for seed in (1, 1)]
    assert kept == [None, None] or kept[0].item() == kept[1].item()  # type: ignore[union-attr]


def test_one_image_at_a_time_has_the_same_gradient(method: Unlearner) -> None:
    if not method.steps:
        pytest.skip("a closed form has no gradient")
    parameters, micro = list(method.trained().values()), method.context.model.execution.micro_batches  # type: ignore[attr-defined]

    def gradient() -> list[torch.Tensor]:
        generator = seeded(3)
        loss, keep = method.loss(generator), method.preservation(generator)
        total = loss if keep is None else loss + keep
        return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))

    whole = gradient()
    micro.size = 1
    assert apart(gradient(), whole) < 1e-4


@every_unlearner
def test_a_killed_run_ends_at_the_same_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "CHECKPOINT_SECONDS", 0.0)
    settings = {"unlearner": tiny(unlearners, name)}
    whole = context(**settings)
    steps = [steps for _, steps in harden(whole, "whole").phases]
    if steps:
        assert steps[0] > 3, "too few steps to be killed among them"
        with pytest.raises(KeyboardInterrupt):
            harden(context(Killed(f"erase with {name}", after=2), **settings), "killed")
    resumed = context(**settings)
    record = harden(resumed, "killed")
    assert any("continuing at step 2" in note for note in record.notes) == bool(steps)
    assert {len(series) for series in record.series.values()} <= set(steps)
    for parameter, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[parameter]), parameter


@every_unlearner
def test_an_object_a_style_and_an_identity_are_erased_together(name: str) -> None:
    run = context(concepts=MIXED, images=6, unlearner=tiny(unlearners, name))
    assert harden(run, "base").checks["tensors"]["changed"] > 0


def test_every_unlearner_is_documented() -> None:
    undocumented: list[Any] = [name for name in unlearners.names() if not (unlearners.get(name).__doc__ or "").strip()]
    assert undocumented == []
