"""The distribution of simulated fine-tunes: drawn from the seed alone, over all that is declared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.data.fine_tuning import SimulatedDataSets
from safeguard.errors import UsageFault
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.policy.schema import FineTuningMethod
from safeguard.resilience.imma import IMMA, IMMAConfig
from safeguard.resilience.meta_unlearning import MetaUnlearning, MetaUnlearningConfig
from safeguard.resilience.resalign import ResAlign, ResAlignConfig
from safeguard.resilience.simulation import Simulation, Simulations, Simulator
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import drawn_context, mixed_concepts, seeded, tiny_context


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return tiny_context()


def only_the_concept() -> HardeningContext:
    """A hardening context without related and retained images."""
    context = drawn_context({"name": "ga"}, mixed_concepts(2))
    context.policy = context.policy.model_copy(update={"retain": []})
    return context


def simulator(context: HardeningContext, **settings: Any) -> Simulator:
    return Simulator(Simulations.model_validate(settings), context)


def draw(context: HardeningContext, seed: int, **settings: Any) -> Simulation:
    return simulator(context, **settings).draw(seed)


def test_everything_declared_is_drawn(context: HardeningContext) -> None:
    drawing = simulator(
        context,
        data=["concept", {"shares": {"concept": 1, "retain": 1}, "weight": 2}],
        methods=[FineTuningMethod(name="full"), FineTuningMethod.model_validate({"name": "lora", "rank": 2})],
        learning_rates=[1e-3, 1e-4],
        steps=[4, 2],
        optimizers=["sgd", "momentum", "adam", "adamw"],
        losses=["plain", "prior-preserving"],
        training={"max_grad_norm": 7.0, "schedule": "cosine", "warm_up": 1},
    )
    drawn = [drawing.draw(seed) for seed in range(60)]
    seen: dict[str, set[Any]] = {
        "data": {tuple(simulation.description.shares) for simulation in drawn},
        "method": {type(getattr(simulation.tuner, "tuner", simulation.tuner)).__name__ for simulation in drawn},
        "rate": {simulation.training.learning_rate for simulation in drawn},
        "steps": {simulation.training.steps for simulation in drawn},
        "optimizer": {simulation.training.optimizer for simulation in drawn},
        "prior": {isinstance(simulation.tuner, PriorPreservation) for simulation in drawn},
    }
    assert seen == {
        "data": {("concept",), ("concept", "retain")},
        "method": {"FullFineTuning", "LoRA"},
        "rate": {1e-3, 1e-4},
        "steps": {4, 2},
        "optimizer": {"sgd", "momentum", "adam", "adamw"},
        "prior": {True, False},
    }
    assert {(one.training.max_grad_norm, one.training.schedule, one.training.batch_size) for one in drawn} == {
        (7.0, "cosine", 4)
    }
    mixed = [simulation.data for simulation in drawn if len(simulation.description.shares) == 2]
    assert len(mixed) > 30 and len(mixed[0]) == 8 and set(mixed[0].captions) == {"an axe", "a big axe", "a cat"}


def test_a_draw_depends_on_the_seed_alone(context: HardeningContext) -> None:
    one, two = (draw(context, 3) for _ in range(2))
    assert (one.description, one.training, one.seed) == (two.description, two.training, two.seed)


def test_what_is_not_varied_is_the_trainings(context: HardeningContext) -> None:
    plain, named = draw(context, 3), draw(context, 3, training={"steps": 3, "optimizer": "sgd"})
    assert (plain.training.steps, plain.training.batch_size, plain.training.learning_rate) == (16, 4, 1e-5)
    assert (named.training.steps, named.training.optimizer, named.training.batch_size) == (3, "sgd", 4)
    with pytest.raises(ValidationError, match="nothing of the shortest"):
        Simulations.model_validate({"steps": [9, 2], "training": {"warm_up": 2}})


def test_prior_preservation_adds_the_loss_of_benign_images(context: HardeningContext) -> None:
    def loss(seed: int, **settings: Any) -> float:
        simulation = draw(context, seed, steps=[1], **settings)
        run = simulation.start(context)
        value = run.loss(seeded(1)).item()
        simulation.tuner.detach(context.model)
        return value

    plain = loss(0)
    once, twice = (loss(0, losses=["prior-preserving"], prior_weight=weight) for weight in (1.0, 2.0))
    assert once > plain and twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)


def test_data_that_the_policy_lacks_are_left_out_or_refused() -> None:
    context = only_the_concept()
    mixture = {"shares": {"concept": 1, "related": 1}}
    drawing = simulator(context, data=["concept", {"shares": {"retain": 1}, "weight": 90}, mixture])
    assert {tuple(drawing.draw(seed).description.shares) for seed in range(9)} == {("concept",)}
    with pytest.raises(UsageFault, match=r"no images to simulate .* 'retain'"):
        simulator(context, data=["retain"])
    with pytest.raises(UsageFault, match=r"no images to simulate .* 'related'"):
        simulator(context, data=[mixture])
    with pytest.raises(UsageFault, match="needs benign images"):
        simulator(context, losses=["prior-preserving"])
    unlearner = GradientAscent(GradientAscentConfig(), context)
    with pytest.raises(UsageFault, match=r"no images to simulate .* 'retain'"):
        IMMA(IMMAConfig.model_validate({"data": "retain"}), context, unlearner)


@pytest.mark.parametrize("data", [[], ["nudity"], [{"shares": {"concept": 1}, "weight": -1}], {"concept": 1.0}])
def test_nonsense_is_refused(data: Any) -> None:
    with pytest.raises(ValidationError):
        Simulations.model_validate({"data": data})


def test_few_prompts_are_those_that_the_seed_picks(context: HardeningContext) -> None:
    captions = set(context.forget.captions)
    assert len(captions) > 1
    found = [draw(context, seed, prompts=[1]).data for seed in range(8)]
    assert all(len(set(data.captions)) == 1 for data in found)
    assert {data.captions[0] for data in found} == captions, "each in its turn"
    for data in found:
        rows = [row for row, caption in enumerate(context.forget.captions) if caption == data.captions[0]]
        assert torch.equal(data.mean, context.forget.mean[rows])
        assert torch.equal(data.conditioning.states, context.forget.conditioning.states[rows])
    mixed = [draw(context, seed, prompts=[None, 1]).data for seed in range(8)]
    assert {len(set(data.captions)) for data in mixed} == {1, len(captions)}
    assert draw(context, 0, prompts=[9]).data.captions == context.forget.captions
    own = [{"shares": {"concept": 1}, "prompts": 1}]
    assert {len(set(draw(context, seed, data=own, prompts=[9]).data.captions)) for seed in range(4)} == {1}


def test_images_at_hand_are_mixed_by_their_shares(context: HardeningContext) -> None:
    data = draw(context, 0, data=[{"shares": {"concept": 1, "retain": 2}}]).data
    assert Counter(caption == "a cat" for caption in data.captions) == {False: 2, True: 4}


def test_a_number_of_images_is_drawn_as_an_attack_draws_it(context: HardeningContext) -> None:
    """Not only those that the context happens to have of a prompt, once for every prompt."""
    drawing = simulator(context, data=[{"shares": {"concept": 1}, "images": 6}], prompts=[1])
    found = [drawing.draw(seed) for seed in range(8)]
    assert {len(one.data) for one in found} == {6} and max(Counter(context.forget.captions).values()) < 6
    assert {tuple(one.data.captions) for one in found} == {("an axe",) * 6, ("a big axe",) * 6}
    assert len({one.data.digest for one in found}) == 2
    sets = SimulatedDataSets(context.teacher, context.policy)
    assert all(sets.get(one.description, one.seed).digest == one.data.digest for one in found)


@pytest.mark.parametrize("images", [None, 3])
def test_every_objective_takes_the_same_description(
    images: int | None, context: HardeningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, unlearner = (
        {"shares": {"concept": 1}, "images": images, "prompts": 1},
        GradientAscent(GradientAscentConfig(batch_size=1), context),
    )
    training = {"steps": 1, "batch_size": 1}
    seen: list[Any] = []
    whole = context.after
    monkeypatch.setattr(context, "after", lambda images: seen.append(images) or whole(images))
    ascent = {"name": "ga", "batch_size": 1}
    for built in (
        ResAlign(
            ResAlignConfig.model_validate(
                {
                    "harmful_loss": ascent,
                    "retain_batch": 1,
                    "evaluations": 1,
                    "distribution": {"data": [data], "training": training},
                }
            ),
            context,
            unlearner,
        ),
        MetaUnlearning(
            MetaUnlearningConfig.model_validate({"data": data, "training": training, "harmful_loss": ascent}),
            context,
            unlearner,
        ),
    ):
        for value in built.parameters().values():
            value.requires_grad_(True)
        built.compute_gradients(0)
    assert [len(set(one.captions)) for one in seen] == [1, 1]
    assert all(len(one) == (images or Counter(context.forget.captions)[one.captions[0]]) for one in seen)
    imma = IMMA(IMMAConfig.model_validate({"data": data, "training": training}), context, unlearner)
    with imma._adaptation(0, list(imma.parameters().values())) as run:
        assert len(set(run.data.captions)) == 1
        assert len(run.data) == (images or Counter(context.forget.captions)[run.data.captions[0]])
