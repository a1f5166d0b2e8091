"""The hardening engine on a tiny model: phases, checkpoints, resumption, and the checks at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import select
from safeguard.errors import TrainingFault, UsageFault
from safeguard.harden import engine, phase
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from safeguard.resilience.meta_unlearning import MetaUnlearning
from safeguard.unlearn.base import HardeningContext
from tests.contexts import tiny_policy
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
    "harmful_loss": None,
    "hypergradient": "moreau",
    "evaluations": 1,
    "steps": 3,
    "retain_batch": 4,
    "hessian_batch": 1,
    "warm_start": True,
    "distribution": {"training": {"steps": 2, "learning_rate": 1e-4, "batch_size": 1}},
}


SDD = {
    "name": "sdd",
    "steps": 6,
    "trajectory_steps": 3,
    "momentum": 0.5,
    "learning_rate": 1e-3,
}
LOW_RANK = {"lora_rank": 2, "parameters": "cross-attention", "hypergradient": "first_order"}
META = {
    "name": "meta-unlearning",
    "harmful_loss": [{"name": "ga", "captions": "any"}, {"name": "sdd", "trajectory_steps": 3, "momentum": 0.5}],
    "prompts": [None, 1],
    "variant": "released",
    "steps": 3,
    "training": {"batch_size": 2},
    "warm_start": True,
}
RECELER = {
    "name": "receler",
    "steps": 6,
    "batch_size": 2,
    "rank": 2,
    "attack_steps": 2,
    "trajectory_steps": 3,
    "pool": 2,
    "learning_rate": 1e-2,
}
ADVUNLEARN = {
    "name": "advunlearn",
    "steps": 6,
    "warm_up": 3,
    "attack_steps": 2,
    "trajectory_steps": 3,
    "pool": 2,
    "learning_rate": 1e-3,
}
SHORT = {"steps": 2, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def context(**harden_settings: Any) -> HardeningContext:
    return set_up(tiny_policy(**harden_settings), DiffusionModel(tiny_pipeline(0)), SilentProgress())


def weights(table: HardeningContext) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in table.model.named_parameters().items()}


def test_a_cosine_starts_at_the_learning_rate_and_falls() -> None:
    def moved(steps: int, schedule: str) -> float:
        table = context(unlearner=ESD | {"steps": steps}, schedule=schedule)
        before = weights(table)
        harden(table, "base")
        return sum(float((value - before[name]).abs().sum()) for name, value in weights(table).items())

    assert moved(1, "cosine") == moved(1, "constant")
    # Adam's steps have the size of the learning rate: the second one is half as long.
    assert moved(2, "cosine") < 0.9 * moved(2, "constant")


@pytest.mark.parametrize(
    ("unlearner", "stop_at", "objective"),
    [(SDD, 7, RESALIGN | LOW_RANK), (RECELER, 12, RESALIGN), (ADVUNLEARN, 10, RESALIGN)],
)
def test_a_killed_run_with_state_of_its_own_continues_to_the_same_weights(
    unlearner: dict[str, Any], stop_at: int, objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"unlearner": unlearner, "resilience": objective}
    whole = context(**settings)
    harden(whole, "whole")
    monkeypatch.setattr(phase, "CHECKPOINT_SECONDS", 0.0)
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
        harden(context(**settings), "killed")
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    resumed = context(**settings)
    record = harden(resumed, "killed")
    assert len(record.series["erasure loss"]) == 9
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_an_objective_hears_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, after_step = list[int](), MetaUnlearning.after_step

    def hear(self: MetaUnlearning) -> None:
        heard.append(len(heard))
        after_step(self)

    monkeypatch.setattr(MetaUnlearning, "after_step", hear)
    harden(context(unlearner={"name": "uce"}, resilience=META), "base")
    assert heard == [0, 1, 2]


@pytest.mark.parametrize("unlearner", [ESD, {"name": "uce"}], ids=["esd", "uce"])
def test_bfloat16_hardens_and_the_weights_stay_float32(unlearner: dict[str, Any]) -> None:
    table, exact = (context(unlearner=unlearner, resilience=RESALIGN, precision=p) for p in ("bfloat16", "float32"))
    before = weights(table)
    assert table.model.execution.precision == table.teacher.execution.precision == "bfloat16"
    harden(table, "base")
    harden(exact, "base")
    moved = {name: value - before[name] for name, value in weights(table).items()}
    apart = {name: value - weights(exact)[name] for name, value in weights(table).items()}
    assert {value.dtype for value in weights(table).values()} == {torch.float32}
    way, error = (sum(float(change.pow(2).sum()) for change in found.values()) for found in (moved, apart))
    assert 0 < error < 0.5 * way, "another path, the same direction"
    assert table.model.execution.precision == "float32", "what is checked is what will be used"


def test_a_harmful_loss_adds_no_layers() -> None:
    table = context(unlearner=ESD, resilience=RESALIGN | {"harmful_loss": RECELER})
    with pytest.raises(UsageFault, match="receler adds layers"):
        harden(table, "base")


@pytest.mark.parametrize(("field", "method"), [("unlearner", {"name": "ga"}), ("resilience", RESALIGN)])
def test_a_fault_names_the_method_it_is_about(field: str, method: dict[str, Any]) -> None:
    wrong = {"unlearner": ESD, field: method | {"parameters": "cross-atention"}}
    with pytest.raises(UsageFault, match="unknown parameter group 'cross-atention'") as caught:
        harden(context(**wrong), "base")
    assert str(caught.value).startswith(f"harden.{field}, {method['name']}: ")


def test_nothing_to_keep_is_remarked() -> None:
    policy = tiny_policy(unlearner={"name": "uce"}).model_dump() | {"retain": []}
    policy["concepts"][0]["related"] = []
    table = set_up(Policy.model_validate(policy), DiffusionModel(tiny_pipeline(0)), SilentProgress())
    assert any("no related or retained subject" in note for note in harden(table, "base").notes)


def test_finite_differences_refuse_bfloat16() -> None:
    rough = context(unlearner=ESD, resilience=RESALIGN | {"hvp": "finite_difference"}, precision="bfloat16")
    with pytest.raises(UsageFault, match="finite differences need float32"):
        harden(rough, "base")


def test_what_is_continued_counts_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = harden(context(unlearner=ESD), "base")
    assert alone.cpu_seconds > 0 and alone.peak_bytes > 50e6
    ticks = iter(range(1000))
    monkeypatch.setattr(engine.time, "process_time", lambda: float(next(ticks)))
    for module in (engine, phase):
        monkeypatch.setattr(module, "peak_memory", lambda: 1)
    around = harden(context(unlearner=ESD, resilience=RESALIGN), "base")
    spent = next(ticks) - 2
    assert around.cpu_seconds == pytest.approx(spent + alone.cpu_seconds, rel=0.2), "the phase before, and this run"
    assert 1 < around.peak_bytes <= alone.peak_bytes, "what the phase before needed"


def test_the_unlearned_control_is_the_first_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    harden(context(unlearner=ESD, resilience=RESALIGN), "base")
    losses: list[int] = []
    monkeypatch.setattr("safeguard.unlearn.esd.ESD.loss", lambda *args: losses.append(1))
    from safeguard.policy.schema import ResilienceMethod

    harden(context(unlearner=ESD, resilience=RESALIGN), "base", objective=ResilienceMethod(name="none"))
    assert losses == [], "the phase was already in the cache"


def test_a_closed_form_edits_keys_and_values_only() -> None:
    table = context(unlearner={"name": "uce"})
    before = weights(table)
    harden(table, "base")
    changed = {name for name, value in weights(table).items() if not torch.equal(value, before[name])}
    assert changed and all(".attn2.to_k" in name or ".attn2.to_v" in name for name in changed)


def test_linear_erasers_end_up_in_the_weights() -> None:
    table = context(unlearner=RECELER)
    before = weights(table)
    harden(table, "base")
    after = weights(table)
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if ".attn2.to_out.0." in name}


def test_low_rank_updates_end_up_in_the_weights() -> None:
    """Every matrix of the group moves by a matrix of the declared rank, and nothing else does."""
    table = context(
        unlearner=ESD, resilience=RESALIGN | {"warm_start": False, "lora_rank": 2, "parameters": "attention"}
    )
    before = weights(table)
    harden(table, "base")
    moved = {name: value - before[name] for name, value in weights(table).items()}
    changed = {name for name, value in moved.items() if value.any()}
    group = select(table.model, "attention")
    assert changed == {name for name, value in group.items() if value.dim() > 1}
    for name in changed:
        sizes = torch.linalg.svdvals(moved[name].double())
        assert sizes[2] < 1e-3 * sizes[0]


def test_the_record_says_when_second_order_never_mattered() -> None:
    still = RESALIGN | {"distribution": {"steps": [1], "learning_rates": [1e-9], "optimizers": ["sgd"]}}
    record = harden(context(unlearner=ESD, resilience=still), "base")
    assert any(note.startswith("second order never changed the direction") for note in record.notes)


def test_the_record_names_guards_and_skipped_simulations() -> None:
    broken = {"steps": [1], "learning_rates": [1e30], "optimizers": ["sgd"], "training": {"max_grad_norm": 1e30}}
    with pytest.raises(TrainingFault, match="none of the simulated fine-tunes stayed finite"):
        harden(context(unlearner=ESD, resilience=RESALIGN | {"distribution": broken}), "base")
    some = {"simulations": 4, "distribution": broken | {"learning_rates": [1e30, 1e-4]}}
    record = harden(context(unlearner=ESD, resilience=RESALIGN | some), "base")
    assert any(note.endswith("of the simulated fine-tunes were not finite and were skipped") for note in record.notes)
    wild = RESALIGN | {"gamma": 1e6, "solver": "fixed_point"}
    record = harden(context(unlearner=ESD, resilience=wild), "base")
    assert any(note.startswith("guard of the hypergradient: diverging, 3 times") for note in record.notes)
    assert not any(note.startswith("second order") for note in record.notes), "no solve got as far as to tell"


def test_all_series_are_of_the_same_steps() -> None:
    record = harden(context(unlearner=ESD, resilience=RESALIGN | {"warm_start": True}), "base")
    (_, erased), (_, hardened) = record.phases
    assert {len(values) for values in record.series.values()} == {erased + hardened}
    assert record.series["hypergradient norm"][:erased] == [None] * erased
    assert None not in record.series["hypergradient norm"][erased:]


def test_a_text_encoder_is_hardened_with_the_objective_around_it() -> None:
    table = context(unlearner=ADVUNLEARN, resilience=RESALIGN)
    before = weights(table)
    harden(table, "base")
    changed = {name.partition(".")[0] for name, value in weights(table).items() if not torch.equal(value, before[name])}
    assert changed == {"unet", "text_encoder"} == table.model.exposed_parts


def test_weights_that_are_not_finite_end_the_run() -> None:
    with pytest.raises(TrainingFault):
        harden(context(unlearner=ESD | {"learning_rate": 1e30}), "base")


def test_the_average_is_the_result_of_sdd_alone() -> None:
    whole = []
    for result in ("average", "edited"):
        table = context(unlearner=SDD | {"result": result})
        before = weights(table)
        harden(table, "base")
        whole.append({name: value - before[name] for name, value in weights(table).items()})
    moved = [name for name, value in whole[1].items() if value.abs().max() > 0]
    assert moved and all("attn2" in name for name in moved)
    lengths = [sum(float(change[name].abs().sum()) for name in moved) for change in whole]
    assert 0 < lengths[0] < lengths[1], "an average lags behind"


def test_erasers_that_are_stored_stay_what_hardening_made_of_them() -> None:
    table = context(unlearner=RECELER | SHORT | {"variant": "gelu"}, resilience=RESALIGN)
    before = weights(table)
    record = harden(table, "base")
    added = table.model.named_parameters().keys() - before.keys()
    assert added and all(".eraser." in name for name in added)
    assert all(value.isfinite().all() for value in weights(table).values())
    assert any("holds erasers" in note for note in record.notes)


SHORTAGE = [
    ({"name": "ga", "batch_size": 4, "preserve_batch": 4} | SHORT, {"name": "none"}, 1),
    (
        {"name": "ga", "batch_size": 4} | SHORT,
        RESALIGN | {"steps": 2, "retain_batch": 4, "hvp": "finite_difference"},
        1,
    ),
    (
        {"name": "uce"},
        RESALIGN
        | {"steps": 2, "hypergradient": "first_order"}
        | {"distribution": {"training": {"steps": 2, "batch_size": 4}, "methods": [{"name": "lora"}]}},
        2,
    ),
    (
        ESD | {"steps": 2},
        {"name": "meta-unlearning", "steps": 2, "learning_rate": 1e-3, "variant": "released"},
        2,
    ),
]
"""Unlearner, objective, and rows that fit; batches are of 4. Exact second derivatives see them whole."""


@pytest.mark.parametrize(
    ("unlearner", "resilience", "rows"), SHORTAGE, ids=["alone", "resalign", "resalign-lora", "meta-unlearning"]
)
def test_a_run_short_of_memory_ends_at_the_same_weights(
    unlearner: dict[str, Any], resilience: dict[str, Any], rows: int
) -> None:
    roomy, cramped = (context(unlearner=unlearner, resilience=resilience) for _ in range(2))
    before = weights(roomy)
    record = harden(roomy, "roomy")
    assert (record.micro_batch, record.halved) == (None, 0)

    def fit(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(inputs[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    cramped.model.unet.register_forward_pre_hook(fit)
    record = harden(cramped, "cramped")
    assert record.micro_batch == rows and record.halved > 0
    assert any("ran out of memory" in note for note in record.notes)
    one, two = weights(roomy), weights(cramped)
    moved, apart = (
        sum(float((one[name] - other[name]).pow(2).sum()) for name in one) ** 0.5 for other in (before, two)
    )
    assert moved > 0 and apart < 1e-2 * moved
