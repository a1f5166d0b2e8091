"""The attack that knows the objective: its gradients, its directions, its course, and what it is without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.attack.base import Attack
from safeguard.attack.defence_aware import (
    DefenceAware,
    DefenceAwareConfig,
    OrthogonalRun,
    gradient,
    orthogonalised,
    way_from,
)
from safeguard.attack.finetune import FineTune
from safeguard.attack.target import Base, Target
from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import Run
from safeguard.finetune.full import FullConfig, FullFineTuning
from tests.attack.conftest import Made
from tests.contexts import apart, seeded
from tests.tiny import tiny_pipeline

PLAIN = {"warm_up_on": "none", "orthogonal_to": "none"}


def attack(**changes: Any) -> DefenceAware:
    return DefenceAware(DefenceAwareConfig.model_validate(DefenceAwareConfig.tiny().model_dump() | changes), "probe")


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    found = made.target(tiny_pipeline(1), base, "unet")
    found.data.base = DiffusionModel(tiny_pipeline(0))
    return found


@pytest.fixture
def model() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0))


def cats(model: DiffusionModel) -> LatentSet:
    return generate(model, ["a cat", "a dog"], 3, seed=0, steps=2)


def seen(attack: Attack[Any], target: Target) -> list[tuple[int, float | None, Tensor]]:
    attack.draw(target.data, 0)
    found = target.model.unet.conv_in.weight
    return [(each.effort, each.loss, found.detach().clone()) for each in attack.run(target, 0)]


def random(*shapes: tuple[int, ...], seed: int) -> list[Tensor]:
    return [torch.randn(shape, generator=seeded(seed + place)) for place, shape in enumerate(shapes)]


def test_what_is_left_is_orthogonal_and_as_long_as_before() -> None:
    shapes = (3, 4), (7,), (2, 2, 3, 3)
    given, along = random(*shapes, seed=0), random(*shapes, seed=10)
    along[1] = torch.zeros(7)
    found = orthogonalised(given, along)
    products = [float((a * b).sum() / (a.norm() * b.norm() + 1e-9)) for a, b in zip(found, along, strict=True)]
    assert products == pytest.approx([0.0] * 3, abs=1e-6)
    assert sum(float(a.pow(2).sum()) for a in found) == pytest.approx(
        sum(float(a.pow(2).sum()) for a in given), rel=1e-5
    )
    scale = found[1] / given[1]
    assert torch.allclose(scale, scale[0].expand(7)), "without a direction a tensor is rescaled with the others alone"
    alone = orthogonalised(along[:1], along[:1])
    assert torch.allclose(alone[0], torch.zeros(3, 4), atol=1e-5) or float((alone[0] * along[0]).sum()) < 1e-3


def test_by_hand_in_the_plane() -> None:
    (found,) = orthogonalised([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 0.0])])
    assert torch.allclose(found, torch.tensor([0.0, 5.0]))


def test_steps_on_the_concept_lose_the_direction_and_others_do_not(model: DiffusionModel) -> None:
    data, others = cats(model), generate(model, ["an axe"], 3, seed=0, steps=2)
    found = []
    for spared in (None, others, data):
        run = OrthogonalRun(model, data, FullFineTuning(FullConfig()), Training(batch_size=2), seed=0)
        run.direction, run.spared = random(*(tuple(value.shape) for value in run.parameters), seed=3), spared
        found.append(run.gradients()[1])
    plain = Run(model, data, FullFineTuning(FullConfig()), Training(batch_size=2), seed=0).gradients()[1]
    assert apart(found[2], plain) == 0 and apart(found[0], found[1]) == 0
    assert apart(found[0], orthogonalised(plain, run.direction)) == 0


def test_the_direction_of_retained_images_is_the_gradient_of_their_loss(model: DiffusionModel) -> None:
    data = cats(model)
    run = Run(model, data, FullFineTuning(FullConfig()), Training(), seed=0)
    found = gradient(run, data, 5)
    generator = seeded(5)
    latents = data.mean + data.std * torch.randn(3, *model.latent_shape, generator=generator)
    t, noise = (
        torch.randint(0, 1000, (3,), generator=generator),
        torch.randn(3, *model.latent_shape, generator=generator),
    )
    signal = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    output = model.predict(signal.sqrt() * latents + (1 - signal).sqrt() * noise, t, model.encode_anew(data.captions))
    slow = torch.autograd.grad((output - noise).pow(2).mean(), run.parameters)
    assert apart(found, list(slow)) < 1e-4


def test_the_way_from_the_base_is_the_difference_of_the_weights(target: Target) -> None:
    other = dict(tiny_pipeline(0).unet.named_parameters())
    run = Run(target.model, cats(target.model), FullFineTuning(FullConfig()), Training(), seed=0)
    found = way_from(target.base, run)
    expected = [value - other[name] for name, value in target.model.unet.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and any(value.any() for value in found)
    same = way_from(Base(frozenset(), lambda name: getattr(target.model.pipeline, name)), run)
    assert not any(value.any() for value in same)
    with pytest.raises(UsageFault, match="not at hand"):
        way_from(None, run)


def test_without_any_of_it_it_is_the_plain_fine_tune_to_the_bit(target: Target) -> None:
    aware = attack(**PLAIN)
    settings = aware.config.model_dump(include={"data", "training", "checkpoints"})
    plain = FineTune(FineTune.Config.model_validate(settings), "probe")
    for one, other in zip(seen(aware, target), seen(plain, target), strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])
    assert aware.schedule() == plain.schedule().model_copy(update={"covers": []})


def test_every_way_around_ends_elsewhere(target: Target) -> None:
    ends = [
        seen(attack(**PLAIN | {name: value}), target)[-1][2]
        for name, value in (
            ("warm_up_on", "none"),
            ("warm_up_on", "retain"),
            ("warm_up_on", "related"),
            ("orthogonal_to", "retain"),
            ("orthogonal_to", "base"),
        )
    ]
    assert not any(torch.equal(a, b) for place, a in enumerate(ends) for b in ends[:place])


def test_it_says_what_it_trains_on_and_needs() -> None:
    schedule = attack().schedule()
    assert schedule.sources == ["retain", "concept"] and schedule.cost.training_images == 6
    assert schedule.needs.images == 3 and not schedule.needs.base_model and schedule.covers == ["defence-aware"]
    assert attack(warm_up_on="related").schedule().sources == ["related", "concept", "retain"]
    assert attack(orthogonal_to="base").needs().base_model
    assert attack(**PLAIN | {"warm_up_on": "retain"}).covers() == ["defence-aware"]
    assert attack(data="retain").covers() == []


def test_what_cannot_be_is_refused() -> None:
    for method in ({"name": "lora"}, {"name": "dreambooth", "method": {"name": "lora"}}):
        with pytest.raises(UsageFault, match=f"what {method['name']} adds"):
            attack(orthogonal_to="base", method=method)
    with pytest.raises(ValidationError, match="leaves nothing of 4"):
        attack(warm_up_steps=4)
