"""The sweep over samplers: what draws in each variant, its own noise, what it covers and costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from safeguard.attack.sampler import SamplerConfig, SamplerSweep
from safeguard.attack.target import Target
from safeguard.diffusion.samplers import NoisyDDIM, Scheduled
from tests.attack.conftest import Made

NOTHING: dict[str, Any] = {"eta": [], "v": [], "schedulers": [], "step_counts": [], "guidances": []}


def attack(probe: str = "probe", **settings: Any) -> SamplerSweep:
    return SamplerSweep(SamplerConfig.model_validate(NOTHING | settings), probe)


def drawn(found: SamplerSweep, target: Target, seed: int = 0) -> dict[str, torch.Tensor]:
    """What each variant draws of one prompt and seed, by its label."""
    prompt = target.model.encode_prompts(["an axe"])
    return {
        each.label: each.sampler(target.model, prompt, [1], steps=2, guidance=2.0)
        for each in found.run(target, seed)
        if each.sampler
    }


def test_every_pair_of_the_sweep_and_everything_else_is_one_variant() -> None:
    whole = SamplerSweep(SamplerConfig(), "probe")
    variants = whole.config.variants()
    sweep = [sampler for sampler in variants.values() if isinstance(sampler, NoisyDDIM)]
    assert len(sweep) == 24 and len({(each.eta, each.v) for each in sweep}) == 24
    assert whole.efforts() == list(range(len(variants) + 1))
    assert {each.steps for each in sweep} == {50}
    others = [sampler for sampler in variants.values() if isinstance(sampler, Scheduled)]
    assert {each.scheduler for each in others} == {"dpm-solver++", "ddim", "ddpm", "euler-ancestral"}


def test_labels_say_what_it_is(made: Made, base: Any) -> None:
    found = attack(eta=[1.85], v=[1.04], schedulers=["ddpm"], steps=3, step_counts=[5], guidances=[7.5])
    attempts = list(found.run(made.target(base, base), 0))
    assert [each.label for each in attempts] == [
        "",
        "DDIM of 3 steps with noise of eta 1.85, v 1.04",
        "ddpm of 3 steps",
        "5 steps",
        "guidance 7.5",
    ]
    assert attempts[0].sampler is None, "the placebo is drawn as always"


def test_the_noise_of_a_variant_depends_on_no_other_variant(made: Made, base: Any) -> None:
    target = made.target(base, base)
    few = drawn(attack(eta=[1.5], v=[1.0], steps=2), target)
    more = drawn(attack(eta=[1.0, 1.5], v=[1.0, 1.04], steps=2, schedulers=["ddpm"]), target)
    (label,) = few
    assert torch.equal(few[label], more[label])
    values = list(more.values())
    assert not any(torch.allclose(a, b) for place, a in enumerate(values) for b in values[:place])


def test_noise_follows_from_seed_probe_and_examination(made: Made, base: Any) -> None:
    target, sweep = made.target(base, base), {"eta": [1.0], "v": [1.0], "steps": 2}
    (found,) = drawn(attack(**sweep), target).values()
    (again,) = drawn(attack(**sweep), target).values()
    (of_seed,) = drawn(attack(**sweep), target, seed=1).values()
    (of_probe,) = drawn(attack("other", **sweep), target).values()
    target.exam = 1
    (of_exam,) = drawn(attack(**sweep), target).values()
    assert torch.equal(found, again)
    assert not any(torch.allclose(found, other) for other in (of_seed, of_probe, of_exam))


def test_more_noise_and_guidance_stand_for_samplers() -> None:
    sweep: dict[str, Any] = {"eta": [1.0, 1.85], "v": [1.0]}
    assert SamplerSweep(SamplerConfig(), "probe").covers() == ["samplers"]
    assert attack(**sweep, guidances=[2.0, 7.5]).covers() == ["samplers"]
    assert attack(**sweep).covers() == attack(guidances=[2.0, 7.5]).covers() == []
    assert attack(**sweep, guidances=[4.0]).covers() == [], "which may be the policy's own"
    assert attack(eta=[1.0], v=[1.04], guidances=[2.0, 7.5]).covers() == [], "hardly more noise than usual"
    needs = attack(**sweep).needs()
    assert needs.sampler and not needs.weights


def test_it_says_in_how_many_steps_a_variant_draws() -> None:
    found = attack(eta=[1.0], v=[1.0, 1.1], steps=50, step_counts=[7], guidances=[2.0])
    assert found.cost().sampler_steps == {1: 50, 2: 50, 3: 7}, "guidance alone takes the policy's steps"


def test_nothing_to_try_and_more_steps_than_there_are_timesteps_are_refused() -> None:
    with pytest.raises(ValidationError, match="nothing is tried"):
        attack(eta=[1.0])
    for settings in ({"schedulers": ["ddim"], "steps": 1001}, {"step_counts": [0]}):
        with pytest.raises(ValidationError, match=r"steps|step_counts"):
            attack(**settings)
