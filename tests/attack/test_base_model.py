"""The base in the certified model's place: the same answers, nothing of the certified weights, and all back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.attack.base_model import as_base, base_weights, fine_tuned_base, towards
from safeguard.attack.target import Target
from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import ModelFault, UsageFault
from safeguard.finetune.base import FineTuner, fine_tune
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.prior_preservation import PriorPreservation
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from tests.attack.conftest import Made
from tests.contracts.runs import tiny
from tests.tiny import tiny_pipeline, tiny_unet

TRAINING = Training(steps=2, learning_rate=1e-2, batch_size=2)
IN_WEIGHTS = [
    "full", "lora", "dora", "loha", "lokr", "oft", "svdiff", "textual-inversion", "dreambooth", "custom-diffusion",
]  # fmt: skip
"""Methods whose result can be had as plain weights."""


def answer(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        batch = torch.ones(1, *model.latent_shape), torch.tensor([500]), model.encode_prompts(["sks ktn"])
        return model.predict(*batch)


def ready(method: str, data: LatentSet) -> FineTuner:
    """With tiny settings, and images beside if it needs some."""
    tuner = finetuners.make(FineTuningMethod.model_validate(tiny(finetuners, method)))
    if tuner.beside is not None:
        tuner.preserve(data)
    return tuner


def hardened(seed: int = 1) -> Any:
    """Another model than ``tiny_pipeline(0)`` in every part, with stored erasers that do something."""
    pipeline = tiny_pipeline(seed)
    erasers.attach(pipeline.unet, rank=2, activation="gelu", seed=0)
    for eraser in erasers.erasers(pipeline.unet).values():
        torch.nn.init.ones_(eraser.up.weight)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, beta_end=0.03)
    return pipeline


@pytest.fixture
def data(base: Any) -> LatentSet:
    return generate(DiffusionModel(base), ["a cat", "a dog"], 3, seed=0, steps=2)


@pytest.fixture
def certified(made: Made, base: Any) -> Callable[..., Target]:
    def make(pipeline: Any, *differing: str) -> Target:
        target = made.target(pipeline, base, "unet", *differing)
        target.model.exposed_parts = frozenset({"unet", "text_encoder"})
        return target

    return make


def test_inside_it_is_the_base_and_then_the_certified_model_again(certified: Any, base: Any) -> None:
    target = certified(hardened(), "text_encoder", "scheduler", "vae")
    plain, before, state = DiffusionModel(base), answer(target.model), target.model.unet.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    with as_base(target) as (model, _):
        assert torch.equal(answer(model), answer(plain)) and not torch.equal(answer(model), before)
        assert torch.equal(model.alphas_cumprod, plain.alphas_cumprod)
        assert not erasers.has_erasers(model.unet)
    assert torch.equal(answer(target.model), before)
    after = target.model.unet.state_dict()
    assert list(after) == list(kept) and all(torch.equal(value, kept[name]) for name, value in after.items())


def test_an_error_inside_gives_the_certified_model_back(certified: Any) -> None:
    target = certified(hardened())
    before = answer(target.model)
    with pytest.raises(ZeroDivisionError), as_base(target):
        raise ZeroDivisionError
    assert torch.equal(answer(target.model), before)


def test_all_of_the_way_is_the_base_exactly_and_erasers_have_no_counterpart(certified: Any, base: Any) -> None:
    target = certified(hardened(), "text_encoder")
    values = base_weights(target)
    assert set(values) == {
        f"{part}.{name}" for part in ("unet", "text_encoder") for name, _ in getattr(base, part).named_parameters()
    }
    with target.attacked() as model:
        towards(model, values, 1.0)
        assert all(torch.equal(model.named_parameters()[name], value) for name, value in values.items())


@pytest.mark.parametrize("method", IN_WEIGHTS)
def test_a_fine_tune_of_the_base_knows_nothing_of_the_certified_weights(
    method: str, certified: Any, base: Any, data: LatentSet
) -> None:
    def tuned(pipeline: Any) -> dict[str, torch.Tensor]:
        tuner = ready(method, data)
        return fine_tuned_base(certified(pipeline, "text_encoder", "scheduler"), data, tuner, TRAINING, 3).difference

    one, two = tuned(hardened(1)), tuned(hardened(2))
    assert one and one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", IN_WEIGHTS)
def test_the_difference_is_that_of_the_same_fine_tune_of_the_base(
    method: str, certified: Any, base: Any, data: LatentSet
) -> None:
    target, tuner = certified(hardened(), "scheduler"), ready(method, data)
    found = fine_tuned_base(target, data, tuner, TRAINING, 3)
    plain = DiffusionModel(base)
    plain.exposed_parts = frozenset({"unet", "text_encoder"})
    before = answer(plain)
    for step, _ in fine_tune(plain, data, ready(method, data), TRAINING, seed=3):
        if step == TRAINING.steps:
            expected = answer(plain)
    fresh = DiffusionModel(tiny_pipeline(0))
    with torch.no_grad():
        for name, value in found.difference.items():
            fresh.named_parameters()[name].add_(value)
    moved = (answer(fresh) - expected).abs().max() / (expected - before).abs().max()
    assert moved < 1e-3


def test_what_a_method_adds_and_cannot_put_into_weights_is_refused(base: Any) -> None:
    class Foreign(FineTuner):
        adds_parameters = True

    model = DiffusionModel(base)
    assert not Foreign(None).in_weights and FullFineTuning(FullConfig()).in_weights
    with pytest.raises(UsageFault, match="Foreign does not say"):
        Foreign(None).merge(model)
    with pytest.raises(UsageFault, match="Foreign does not say"):
        PriorPreservation(Foreign(None), generate(model, ["a cat"], 1, seed=0, steps=1)).merge(model)
    FullFineTuning(FullConfig()).merge(model)


def test_a_base_of_another_shape_is_refused(made: Made, base: Any) -> None:
    wider = tiny_pipeline(0)
    wider.unet = tiny_unet(block_out_channels=(32, 32))
    with pytest.raises(ModelFault, match=r"unet\..* has no counterpart in the base model"):
        base_weights(made.target(wider, base, "unet"))
