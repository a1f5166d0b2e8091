"""DDIM inversion and the way between latents: what they must give back, and what they must keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safeguard.diffusion.inversion import invert, resume, slerp
from safeguard.diffusion.model import DiffusionModel
from tests.contexts import abar, seeded
from tests.tiny import ARCHITECTURES, tiny_pipeline


def latents(count: int = 2) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=seeded(3))


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_a_run_comes_back_to_where_it_was_inverted_from(architecture: str) -> None:
    """The nearer the more steps there are: begun after three tenths of them, as self-regeneration does."""
    model, start = DiffusionModel(ARCHITECTURES[architecture](0)), latents()
    prompt, errors = model.encode_prompts(["an axe", "a cat"]), []
    for steps in (10, 50):
        found = invert(model, prompt, start, steps=steps, guidance=1.0, first=3 * steps // 10)
        back = resume(model, prompt, found, steps=steps, guidance=1.0, first=3 * steps // 10)
        assert apart(found, start) > 0.1
        errors.append(apart(back, start))
    assert errors[1] < 0.05 and errors[1] < errors[0] / 2, errors


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_is_exact_where_the_network_does_not_look_at_its_input(prediction_type: str) -> None:
    model, start = DiffusionModel(tiny_pipeline(0, prediction_type=prediction_type)), latents()
    model.unet.conv_out.weight.zero_()
    model.unet.conv_out.bias.copy_(torch.tensor([0.5, -0.3, 0.2, 0.1]))
    prompt = model.encode_prompts(["an axe"] * 2)
    found = invert(model, prompt, start, steps=10, guidance=7.5)
    assert apart(resume(model, prompt, found, steps=10, guidance=7.5, first=0), start) < 1e-4 < apart(found, start)


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 4])
def test_without_noise_to_predict_only_the_signal_shrinks(first: int) -> None:
    """x_t = sqrt(abar_t / abar_0) x_0: the timesteps of ten steps of 1000 are 901, 801, ..., 1."""
    model, start = DiffusionModel(tiny_pipeline(0)), latents()
    model.unet.conv_out.weight.zero_()
    model.unet.conv_out.bias.zero_()
    found = invert(model, model.encode_prompts(["an axe"] * 2), start, steps=10, guidance=3.0, first=first)
    assert torch.allclose(found, start * math.sqrt(abar(901 - 100 * first) / abar(0)), rtol=1e-4)


def test_rows_do_not_depend_on_each_other() -> None:
    model, start = DiffusionModel(tiny_pipeline(0)), latents(3)
    prompt = model.encode_prompts(["an axe", "a cat", "an axe"])
    together = invert(model, prompt, start, steps=3, guidance=2.0)
    alone = [invert(model, prompt[[row]], start[[row]], steps=3, guidance=2.0) for row in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_the_way_between_two_latents_hits_both_and_keeps_their_norm() -> None:
    a, b = latents(2), torch.randn(2, 4, 8, 8, generator=seeded(4))
    b = b / b.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * a.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-5) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-5)
    for share in (0.1, 0.5, 0.8):
        found = slerp(a, b, share)
        assert torch.allclose(found.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-5)
        angles = [torch.nn.functional.cosine_similarity(end.flatten(1), found.flatten(1)).acos() for end in (a, b)]
        assert torch.allclose(angles[0] * (1 - share), angles[1] * share, atol=1e-3)


def test_the_middle_of_a_right_angle_and_of_none() -> None:
    a = torch.zeros(1, 1, 1, 2)
    a[..., 0] = 2.0
    b = a.flip(-1)
    assert torch.allclose(slerp(a, b, 0.5), (a + b) / math.sqrt(2))
    assert torch.allclose(slerp(a, 3 * a, 0.25), 1.5 * a)
