"""The distribution of simulated fine-tunes: drawn from the seed alone, over all that is declared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.errors import UsageFault
from safeguard.policy.schema import FineTuningMethod
from safeguard.resilience.simulation import Simulations, check, draw
from safeguard.unlearn.base import Workbench
from tests.benches import drawn_bench, mixed_concepts, seeded, tiny_bench


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return tiny_bench()


def only_the_concept() -> Workbench:
    """A workbench without related and retained images."""
    bench = drawn_bench({"name": "ga"}, mixed_concepts(2))
    bench.policy = bench.policy.model_copy(update={"retain": []})
    return bench


def test_everything_declared_is_drawn(bench: Workbench) -> None:
    config = Simulations(
        data={"concept": 1.0, "concept+retain": 1.0, "related": 0.0},
        methods=[FineTuningMethod(name="full"), FineTuningMethod.model_validate({"name": "lora", "rank": 2})],
        learning_rates=[1e-3, 1e-4],
        steps=[1, 2],
        optimizers=["sgd", "momentum", "adam", "adamw"],
        losses=["plain", "prior-preserving"],
        max_grad_norm=7.0,
    )
    drawn = [draw(config, bench, seed) for seed in range(60)]
    seen: dict[str, set[Any]] = {
        "data": {simulation.data_name for simulation in drawn},
        "method": {type(simulation.tuner).__name__ for simulation in drawn},
        "rate": {simulation.training.learning_rate for simulation in drawn},
        "steps": {simulation.training.steps for simulation in drawn},
        "optimizer": {simulation.training.optimizer for simulation in drawn},
        "prior": {simulation.prior is not None for simulation in drawn},
    }
    assert seen == {
        "data": {"concept", "concept+retain"},
        "method": {"FullFineTuning", "LoRA"},
        "rate": {1e-3, 1e-4},
        "steps": {1, 2},
        "optimizer": {"sgd", "momentum", "adam", "adamw"},
        "prior": {True, False},
    }
    assert all(simulation.training.max_grad_norm == 7.0 for simulation in drawn)
    mixed = next(simulation.data for simulation in drawn if simulation.data_name == "concept+retain")
    assert len(mixed) == 8 and set(mixed.captions) == {"an axe", "a big axe", "a cat"}


def test_a_draw_depends_on_the_seed_alone(bench: Workbench) -> None:
    one, two = (draw(Simulations(), bench, 3) for _ in range(2))
    assert (one.data_name, one.training, one.seed) == (two.data_name, two.training, two.seed)


def test_prior_preservation_adds_the_loss_of_benign_images(bench: Workbench) -> None:
    def loss(seed: int, **settings: Any) -> float:
        simulation = draw(Simulations(data={"concept": 1.0}, steps=[1], **settings), bench, seed)
        run = simulation.start(bench)
        value = run.loss(seeded(1)).item()
        simulation.tuner.detach(bench.model)
        return value

    plain = loss(0)
    once, twice = (loss(0, losses=["prior-preserving"], prior_weight=weight) for weight in (1.0, 2.0))
    assert once > plain and twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)


def test_data_that_the_policy_lacks_are_left_out_or_refused() -> None:
    bench = only_the_concept()
    for name in ("related", "related+concept"):
        assert {draw(Simulations(data={"concept": 1.0, name: 1.0}), bench, s).data is not None for s in range(4)}
    assert {draw(Simulations(data={"concept": 0.1, "retain": 9.0}), bench, s).data_name for s in range(9)} == {
        "concept"
    }
    with pytest.raises(UsageFault, match="no images to simulate"):
        check(Simulations(data={"retain": 1.0}), bench)
    with pytest.raises(UsageFault, match="asks for retain"):
        check(Simulations(data={"concept": 0.0, "retain": 1.0}), bench)
    with pytest.raises(UsageFault, match="needs benign images"):
        check(Simulations(losses=["prior-preserving"]), bench)
    check(Simulations(data={"concept": 0.1, "retain": 9.0}), bench)


@pytest.mark.parametrize("data", [{}, {"nudity": 1.0}, {"concept+": 1.0}, {"concept": -1.0}])
def test_nonsense_is_refused(data: dict[Any, float]) -> None:
    with pytest.raises(ValidationError):
        Simulations(data=data)


def test_few_prompts_are_those_that_the_seed_picks(bench: Workbench) -> None:
    captions = set(bench.forget.captions)
    assert len(captions) > 1
    found = [draw(Simulations(data={"concept": 1.0}, prompts=[1]), bench, seed).data for seed in range(8)]
    assert all(len(set(data.captions)) == 1 for data in found)
    assert {data.captions[0] for data in found} == captions, "each in its turn"
    for data in found:
        rows = [row for row, caption in enumerate(bench.forget.captions) if caption == data.captions[0]]
        assert torch.equal(data.mean, bench.forget.mean[rows])
        assert torch.equal(data.conditioning.states, bench.forget.conditioning.states[rows])
    mixed = [draw(Simulations(data={"concept": 1.0}, prompts=[None, 1]), bench, seed).data for seed in range(8)]
    assert {len(set(data.captions)) for data in mixed} == {1, len(captions)}
    many = draw(Simulations(data={"concept": 1.0}, prompts=[9]), bench, 0).data
    assert many.captions == bench.forget.captions
