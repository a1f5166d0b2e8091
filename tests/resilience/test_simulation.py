"""The distribution of simulated fine-tunes: drawn from the seed alone, over all that is declared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.errors import UsageFault
from safeguard.policy.schema import FineTuningMethod
from safeguard.resilience.simulation import Simulations, check, draw
from safeguard.unlearn.base import HardeningContext
from tests.contexts import drawn_context, mixed_concepts, seeded, tiny_context


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return tiny_context()


def only_the_concept() -> HardeningContext:
    """A hardening context without related and retained images."""
    context = drawn_context({"name": "ga"}, mixed_concepts(2))
    context.policy = context.policy.model_copy(update={"retain": []})
    return context


def test_everything_declared_is_drawn(context: HardeningContext) -> None:
    config = Simulations(
        data={"concept": 1.0, "concept+retain": 1.0, "related": 0.0},
        methods=[FineTuningMethod(name="full"), FineTuningMethod.model_validate({"name": "lora", "rank": 2})],
        learning_rates=[1e-3, 1e-4],
        steps=[1, 2],
        optimizers=["sgd", "momentum", "adam", "adamw"],
        losses=["plain", "prior-preserving"],
        max_grad_norm=7.0,
    )
    drawn = [draw(config, context, seed) for seed in range(60)]
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


def test_a_draw_depends_on_the_seed_alone(context: HardeningContext) -> None:
    one, two = (draw(Simulations(), context, 3) for _ in range(2))
    assert (one.data_name, one.training, one.seed) == (two.data_name, two.training, two.seed)


def test_prior_preservation_adds_the_loss_of_benign_images(context: HardeningContext) -> None:
    def loss(seed: int, **settings: Any) -> float:
        simulation = draw(Simulations(data={"concept": 1.0}, steps=[1], **settings), context, seed)
        run = simulation.start(context)
        value = run.loss(seeded(1)).item()
        simulation.tuner.detach(context.model)
        return value

    plain = loss(0)
    once, twice = (loss(0, losses=["prior-preserving"], prior_weight=weight) for weight in (1.0, 2.0))
    assert once > plain and twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)


def test_data_that_the_policy_lacks_are_left_out_or_refused() -> None:
    context = only_the_concept()
    for name in ("related", "related+concept"):
        assert {draw(Simulations(data={"concept": 1.0, name: 1.0}), context, s).data is not None for s in range(4)}
    assert {draw(Simulations(data={"concept": 0.1, "retain": 9.0}), context, s).data_name for s in range(9)} == {
        "concept"
    }
    with pytest.raises(UsageFault, match="no images to simulate"):
        check(Simulations(data={"retain": 1.0}), context)
    with pytest.raises(UsageFault, match="asks for retain"):
        check(Simulations(data={"concept": 0.0, "retain": 1.0}), context)
    with pytest.raises(UsageFault, match="needs benign images"):
        check(Simulations(losses=["prior-preserving"]), context)
    check(Simulations(data={"concept": 0.1, "retain": 9.0}), context)


@pytest.mark.parametrize("data", [{}, {"nudity": 1.0}, {"concept+": 1.0}, {"concept": -1.0}])
def test_nonsense_is_refused(data: dict[Any, float]) -> None:
    with pytest.raises(ValidationError):
        Simulations(data=data)


def test_few_prompts_are_those_that_the_seed_picks(context: HardeningContext) -> None:
    captions = set(context.forget.captions)
    assert len(captions) > 1
    found = [draw(Simulations(data={"concept": 1.0}, prompts=[1]), context, seed).data for seed in range(8)]
    assert all(len(set(data.captions)) == 1 for data in found)
    assert {data.captions[0] for data in found} == captions, "each in its turn"
    for data in found:
        rows = [row for row, caption in enumerate(context.forget.captions) if caption == data.captions[0]]
        assert torch.equal(data.mean, context.forget.mean[rows])
        assert torch.equal(data.conditioning.states, context.forget.conditioning.states[rows])
    mixed = [draw(Simulations(data={"concept": 1.0}, prompts=[None, 1]), context, seed).data for seed in range(8)]
    assert {len(set(data.captions)) for data in mixed} == {1, len(captions)}
    many = draw(Simulations(data={"concept": 1.0}, prompts=[9]), context, 0).data
    assert many.captions == context.forget.captions
