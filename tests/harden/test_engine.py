"""The hardening engine on a tiny model: phases, checkpoints, resumption, and the checks at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.errors import TrainingFault
from safeguard.harden import engine
from safeguard.harden.engine import harden
from safeguard.harden.workbench import set_up
from safeguard.model.diffusion import DiffusionModel
from safeguard.progress import SilentProgress
from safeguard.unlearn.base import Workbench
from tests.benches import tiny_policy
from tests.tiny import tiny_pipeline

ESD = {
    "name": "esd",
    "variant": "x",
    "steps": 6,
    "batch_size": 2,
    "trajectory_steps": 3,
    "pool": 2,
    "learning_rate": 1e-3,
}
RESALIGN = {
    "name": "resalign",
    "steps": 3,
    "simulations": 1,
    "warm_start": True,
    "distribution": {"steps": [2], "learning_rates": [1e-4]},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def bench(**harden_settings: Any) -> Workbench:
    return set_up(tiny_policy(**harden_settings), DiffusionModel(tiny_pipeline(0)), SilentProgress())


def weights(table: Workbench) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in table.model.unet.named_parameters()}


def test_only_the_unlearners_parameters_change() -> None:
    table = bench(unlearner=ESD)
    before = weights(table)
    record = harden(table, "base")
    changed = {name for name, value in weights(table).items() if not torch.equal(value, before[name])}
    assert changed and all("attn2" in name for name in changed)
    assert len(record.series["erasure loss"]) == 6
    assert all(torch.equal(a, b) for a, b in zip(table.teacher.unet.parameters(), before.values(), strict=True))


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_killed_run_continues_to_the_same_weights(stop_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"unlearner": ESD, "resilience": RESALIGN}
    whole = bench(**settings)
    harden(whole, "whole")
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    calls = 0
    step = torch.optim.Adam.step

    def interrupted(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop_at:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harden(bench(**settings), "killed")
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    resumed = bench(**settings)
    record = harden(resumed, "killed")
    assert len(record.series["erasure loss"]) == 9
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_the_unlearned_control_is_the_first_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    harden(bench(unlearner=ESD, resilience=RESALIGN), "base")
    losses: list[int] = []
    monkeypatch.setattr("safeguard.unlearn.esd.ESD.loss", lambda *args: losses.append(1))
    from safeguard.policy.schema import ResilienceMethod

    harden(bench(unlearner=ESD, resilience=RESALIGN), "base", objective=ResilienceMethod(name="none"))
    assert losses == [], "the phase was already in the cache"


def test_a_closed_form_edits_keys_and_values_only() -> None:
    table = bench(unlearner={"name": "uce"})
    before = weights(table)
    harden(table, "base")
    changed = {name for name, value in weights(table).items() if not torch.equal(value, before[name])}
    assert changed and all(".attn2.to_k" in name or ".attn2.to_v" in name for name in changed)


def test_weights_that_are_not_finite_end_the_run() -> None:
    with pytest.raises(TrainingFault):
        harden(bench(unlearner=ESD | {"learning_rate": 1e30}), "base")


@pytest.mark.parametrize("unlearner", [ESD, {"name": "uce"}, {"name": "ga", "steps": 3, "learning_rate": 1e-3}])
@pytest.mark.parametrize("resilience", [RESALIGN, {"name": "meta-unlearning", "steps": 2, "learning_rate": 1e-3}])
def test_any_unlearner_with_any_objective(unlearner: dict[str, Any], resilience: dict[str, Any]) -> None:
    record = harden(bench(unlearner=unlearner, resilience=resilience), "base")
    assert record.seconds > 0
