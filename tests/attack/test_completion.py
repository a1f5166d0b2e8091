"""The base takes the first steps: none, all, some; and its weights are in place in these alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.completion import Completion, CompletionConfig, in_place
from safeguard.attack.target import Target
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.samplers import Relay
from safeguard.diffusion.sampling import ddim, initial_noise, sample_latents
from safeguard.errors import ModelFault, UsageFault
from tests.attack.conftest import Made
from tests.tiny import tiny_pipeline, tiny_unet

STEPS, SEEDS = 4, [1, 2]


def attack(*first: int) -> Completion:
    return Completion(CompletionConfig(first=list(first), steps=STEPS), "probe")


def plain(model: DiffusionModel) -> torch.Tensor:
    """The deterministic DDIM run of one model."""
    prompt, noise = model.encode_prompts(["an axe", "a cat"]), initial_noise(model, SEEDS)
    scheduler = ddim(model.pipeline.scheduler.config)
    return sample_latents(model, prompt, noise, steps=STEPS, guidance=3.0, scheduler=scheduler)


def drawn(target: Target, sampler: Any) -> torch.Tensor:
    prompt = target.model.encode_prompts(["an axe", "a cat"])
    found: torch.Tensor = sampler(target.model, prompt, SEEDS, steps=7, guidance=3.0)
    return found


@pytest.fixture
def erased() -> Any:
    """Another denoiser than that of ``tiny_pipeline(0)``, beside the same text encoder."""
    pipeline = tiny_pipeline(0)
    pipeline.unet = tiny_pipeline(1).unet
    return pipeline


def test_with_no_step_it_is_the_certified_model_and_with_all_the_base(made: Made, base: Any, erased: Any) -> None:
    target = made.target(erased, base, "unet")
    weights = {f"unet.{name}": value for name, value in base.unet.named_parameters()}
    own, theirs = plain(target.model), plain(DiffusionModel(base))
    assert not torch.allclose(own, theirs)
    torch.testing.assert_close(drawn(target, Relay(0, partial(in_place, weights), STEPS)), own)
    found = {each.effort: drawn(target, each.sampler) for each in attack(1, STEPS).run(target, 0) if each.sampler}
    torch.testing.assert_close(found[STEPS], theirs)
    assert not torch.allclose(found[1], own) and not torch.allclose(found[1], theirs)
    assert made.read == ["unet"], "it is read once"


def test_the_bases_weights_are_in_place_in_its_steps_alone(made: Made, base: Any, erased: Any) -> None:
    target = made.target(erased, base, "unet")
    before = {name: value.clone() for name, value in target.model.unet.named_parameters()}
    for attempt in attack(1, 2).run(target, 0):
        if attempt.sampler:
            drawn(target, attempt.sampler)
        assert all(torch.equal(value, before[name]) for name, value in target.model.unet.named_parameters())
    theirs = {f"unet.{name}": value for name, value in base.unet.named_parameters()}
    with in_place(theirs, target.model):
        assert all(torch.equal(value, theirs[f"unet.{name}"]) for name, value in target.model.unet.named_parameters())
    with pytest.raises(ZeroDivisionError), in_place(theirs, target.model):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in target.model.unet.named_parameters())


@torch.no_grad()
def test_stored_erasers_do_nothing_in_the_bases_steps(made: Made, base: Any) -> None:
    pipeline = tiny_pipeline(0)
    erasers.attach(pipeline.unet, rank=2, activation="gelu", seed=0)
    for eraser in erasers.erasers(pipeline.unet).values():
        torch.nn.init.ones_(eraser.up.weight)
    target, theirs = made.target(pipeline, base, "unet"), plain(DiffusionModel(base))
    own = plain(target.model)
    assert not torch.allclose(own, theirs)
    _, attempt = attack(STEPS).run(target, 0)
    torch.testing.assert_close(drawn(target, attempt.sampler), theirs)
    torch.testing.assert_close(plain(target.model), own)


def test_a_base_of_another_shape_and_no_base_are_refused(made: Made, base: Any) -> None:
    other = tiny_pipeline(1)
    other.unet = tiny_unet(layers_per_block=2)
    target = made.target(other, base, "unet")
    with pytest.raises(ModelFault, match="has no counterpart in the base model"):
        list(attack(1).run(target, 0))
    target.base = None
    with pytest.raises(UsageFault, match="not at hand"):
        list(attack(1).run(target, 0))


def test_it_is_a_diagnostic_that_says_what_it_costs() -> None:
    found = attack(1, 2)
    assert found.covers() == [] and found.needs().base_model and found.schedule().reported_only
    assert found.cost().sampler_steps == {1: STEPS, 2: STEPS}
    for first in ([2, 1], [1, 1], [STEPS + 1]):
        with pytest.raises(ValidationError, match="must ascend and end within the steps"):
            attack(*first)
