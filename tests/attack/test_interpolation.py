"""The line through the certified model and its base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.interpolation import Interpolation, InterpolationConfig
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline


def attack(*lambdas: float) -> Interpolation:
    return Interpolation(InterpolationConfig.model_validate({"lambdas": list(lambdas)}), "probe")


def answer(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        batch = torch.ones(1, *model.latent_shape), torch.tensor([500]), model.encode_prompts(["an axe"])
        return model.predict(*batch)


def test_every_place_is_on_the_line_and_the_last_is_the_base(made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(1)
    erasers.attach(pipeline.unet, rank=2, activation="gelu", seed=0)
    for eraser in erasers.erasers(pipeline.unet).values():
        torch.nn.init.ones_(eraser.up.weight)
    target, plain = made.target(pipeline, base, "unet", "text_encoder"), DiffusionModel(base)
    start, zero = ({name: v.clone() for name, v in m.named_parameters().items()} for m in (target.model, plain))
    places = [-0.25, 0.25, 1.0]
    labels, answers = [], []
    for attempt, place in zip(attack(*places).run(target, 0), [0.0, *places], strict=True):
        labels.append(attempt.label)
        answers.append(answer(target.model))
        for name, value in target.model.named_parameters().items():
            end = zero.get(name, start[name] if ".down." in name else torch.zeros_like(value))
            assert torch.allclose(value, start[name] + place * (end - start[name]), atol=1e-6), (place, name)
    assert labels == [
        "",
        "lambda = -0.25: 0.25 of the way away from the base",
        "lambda = 0.25: 0.25 of the way to the base",
        "lambda = 1: the base's weights",
    ]
    assert torch.equal(answers[-1], answer(plain)), "erasers add nothing any more, and all else is the base's"
    assert torch.equal(answers[0], answer(target.model))


@pytest.mark.parametrize("lambdas", [[0.0, 0.5], [0.5, 0.25], [0.5, 0.5], [1.5], []])
def test_places_ascend_and_none_is_the_certified_model(lambdas: list[float]) -> None:
    with pytest.raises(ValidationError):
        attack(*lambdas)


def test_it_stands_for_no_kind_of_attack() -> None:
    assert attack(0.5).covers() == [] and attack(0.5).needs().base_model
