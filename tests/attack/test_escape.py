"""The escape from the released weights: its loss and its scale written out; where nothing pulls, a plain fine-tune."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from safeguard.attack.base import Attack
from safeguard.attack.escape import Departure, Escape
from safeguard.attack.finetune import FineTune
from safeguard.attack.target import Target
from safeguard.config import Training
from safeguard.data.latents import generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Run
from safeguard.finetune.full import FullConfig, FullFineTuning
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline

SETTINGS: dict[str, Any] = {
    "data": {"shares": {"concept": 1}, "images": 3},
    "training": {"steps": 3, "learning_rate": 1e-3, "batch_size": 2, "accumulation": 2},
    "checkpoints": [1, 3],
}


def weights(attack: Attack[Any], target: Target) -> list[list[Tensor]]:
    """Of the denoiser at every attempt."""
    attack.draw(target.data, 0)
    return [[value.detach().clone() for value in target.model.unet.parameters()] for _ in attack.run(target, 0)]


@pytest.fixture
def target(made: Made, base: Any) -> Target:
    found = made.target(base, base)
    found.data.base = found.model
    return found


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("norm", [1, 2])
def test_without_a_pull_it_is_the_plain_fine_tune_to_the_bit(target: Target, norm: int, method: dict[str, Any]) -> None:
    settings = SETTINGS | {"method": method}
    plain = weights(FineTune(FineTune.Config.model_validate(settings), "probe"), target)
    for weight, same in ((0.0, True), (0.5, False)):
        found = weights(
            Escape(Escape.Config.model_validate(settings | {"weight": weight, "norm": norm}), "probe"), target
        )
        assert all(torch.equal(a, b) for a, b in zip(found[-1], plain[-1], strict=True)) == same


@pytest.mark.parametrize("norm", [1, 2])
def test_its_loss_is_the_methods_less_the_distance(norm: Literal[1, 2]) -> None:
    model = DiffusionModel(tiny_pipeline(0))
    data = generate(model, ["an axe"], 2, seed=0, steps=2)
    tuner = FullFineTuning(FullConfig())
    run = Run(model, data, Departure(tuner, 0.7, norm), Training(), seed=0)
    start = [value.detach().clone() for value in run.parameters]
    with torch.no_grad():
        for place, value in enumerate(run.parameters):
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(place)))
        moved = torch.cat([(a - b).flatten() for a, b in zip(run.parameters, start, strict=True)])
        distance = moved.abs().sum() / len(moved) ** 0.5 if norm == 1 else moved.pow(2).sum().sqrt()
    found = run.loss(torch.Generator().manual_seed(1))
    plain = Run(model, data, tuner, Training(), seed=0).loss(torch.Generator().manual_seed(1))
    assert torch.allclose(found, plain - 0.7 * distance, rtol=1e-4)


@pytest.mark.parametrize("norm", [1, 2])
def test_the_pull_is_as_strong_for_any_number_of_weights(norm: Literal[1, 2]) -> None:
    """A gradient of norm c from all weights, from those of an attention, and none where it starts."""
    for group in ("full", "cross-attention"):
        model = DiffusionModel(tiny_pipeline(0))
        departure = Departure(FullFineTuning(FullConfig(parameters=group)), 0.5, norm)
        parameters = departure.attach(model, 0)
        found = []
        for _ in range(2):
            pull = torch.autograd.grad(0.5 * departure.distance(), parameters)
            found.append(float(torch.cat([value.flatten() for value in pull]).norm()))
            with torch.no_grad():
                for value in parameters:
                    value.add_(0.01)
        assert found == pytest.approx([0.0, 0.5], rel=1e-3)


def test_it_goes_further_and_stands_for_no_kind(target: Target) -> None:
    start = [value.detach().clone() for value in target.model.unet.parameters()]
    ends = []
    for weight in (0.0, 5.0):
        attack = Escape(Escape.Config.model_validate(SETTINGS | {"weight": weight}), "probe")
        last = weights(attack, target)[-1]
        ends.append(sum(float((a - b).pow(2).sum()) for a, b in zip(last, start, strict=True)))
        assert attack.covers() == [] and attack.needs().images == 3
    assert ends[1] > ends[0]
