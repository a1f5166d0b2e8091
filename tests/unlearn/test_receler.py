"""Receler: erasers, where the concept is, what the adversary writes, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safeguard.diffusion.erasers import erasers, fold
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.receler import Receler, RecelerConfig, attention_maps, concept_mask, outside, write_behind
from tests.contexts import MIXED, learning, moved_context, seeded

SMALL = {"batch_size": 3, "trajectory_steps": 4, "pool": 5, "rank": 4, "attack_steps": 6, "adversarial_tokens": 3}


@pytest.fixture(scope="module")
def drawn_once() -> HardeningContext:
    return moved_context(concepts=MIXED)


@pytest.fixture
def context(drawn_once: HardeningContext) -> HardeningContext:
    """The hardening context with a model of its own, to which erasers are attached."""
    return replace(drawn_once, model=drawn_once.model.frozen_copy())


def receler(context: HardeningContext, **settings: object) -> Receler:
    return Receler(RecelerConfig.model_validate(SMALL | settings), context)


def test_vectors_are_written_behind_the_prompt_and_cut_at_the_end_of_the_context() -> None:
    states, vectors = torch.zeros(2, 5, 1), torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1).expand(2, -1, -1)
    found = write_behind(states, vectors, [1, 3])[..., 0]
    assert found.tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 1, 2]]
    assert torch.equal(write_behind(states, vectors, [5, 5]), states)


def test_the_mask_is_where_the_tokens_of_the_prompt_are_attended_to() -> None:
    near, far = torch.zeros(1, 4, 5), torch.ones(1, 16, 5)
    near[0, :, 0] = torch.tensor([0.0, 9.0, 9.0, 9.0])  # the start token does not count
    near[0, :, 1] = torch.tensor([0.8, 0.1, 0.0, 0.05])
    near[0, :, 2] = torch.tensor([0.8, 0.1, 0.0, 0.05])
    near[0, :, 3] = torch.tensor([0.0, 9.0, 9.0, 9.0])  # nor does the end token
    mask = concept_mask([far, near], [3], 2, 0.1)
    assert mask.tolist() == [[[[1.0, 1.0], [0.0, 0.0]]]]
    assert concept_mask([far, near], [3], 2, 0.2).sum() == 1
    assert concept_mask([far, near], [3], 5, 0.1).shape == (1, 1, 4, 4)


def test_attention_maps_are_probabilities_of_the_base_model(context: HardeningContext) -> None:
    x = torch.randn(2, *context.model.latent_shape, generator=seeded(0))
    states = context.teacher.encode_prompts(["axe in ice", "max"])
    with torch.no_grad():
        plain = context.teacher.predict(x, torch.tensor([5, 50]), states)
        with attention_maps(context.teacher) as maps:
            assert torch.equal(context.teacher.predict(x, torch.tensor([5, 50]), states), plain)
        context.teacher.predict(x, torch.tensor([5, 50]), states)
    assert len(maps) == 4 and all(found.shape == (2, 16, 16) for found in maps)
    assert all(torch.allclose(found.sum(2), torch.ones(2, 16), atol=1e-5) for found in maps)


def test_what_erasers_do_outside_is_a_mean_over_the_pixels_outside() -> None:
    output = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 3.0], [0.0, 4.0]]).view(1, 4, 2)
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    assert outside(output, mask).item() == pytest.approx((2 + 8) / 2)
    assert outside(output, torch.ones(1, 1, 2, 2)).item() == 0


@pytest.mark.parametrize("variant", ["linear", "gelu"])
def test_erasers_alone_learn_and_at_first_only_their_second_layer(context: HardeningContext, variant: str) -> None:
    method = receler(context, variant=variant)
    parameters = learning(method.parameters())
    assert len(parameters) == 4 * 4 and all(name.startswith("unet.") for name in parameters)
    gradients = torch.autograd.grad(method.loss(seeded(0)), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        assert (gradient is not None and gradient.abs().max() > 0) == (".up." in name), name


def test_the_loss_is_esds_behind_the_vectors_plus_what_erasers_do_elsewhere(context: HardeningContext) -> None:
    method = receler(context, keep_adversary=False, locality=0.0)
    with torch.no_grad():
        for eraser in erasers(context.model.unet).values():
            eraser.up.weight.normal_(generator=seeded(3))
    generator = seeded(6)
    drawn, target = method._examples(generator)
    with torch.no_grad():
        wanted = context.teacher.predict(drawn.latents, drawn.t, context.teacher.encode_prompts(drawn.captions))
    starts = [len(context.model.pipeline.tokenizer(caption).input_ids) - 1 for caption in drawn.captions]
    states = method.adversary(drawn, wanted, starts, generator).states
    expected = (context.model.unet(drawn.latents, drawn.t, states).sample - target).pow(2).mean()
    assert method.loss(seeded(6)).item() == pytest.approx(expected.item(), rel=1e-4)
    clean = context.model.encode_prompts(drawn.captions).states
    for row, free, start in zip(states, clean, starts, strict=True):
        changed = [i for i in range(len(row)) if not torch.equal(row[i], free[i])]
        assert changed == list(range(start, min(start + 3, len(row))))
    local = receler(context, keep_adversary=False, locality=1.0, threshold=1.0)
    assert local.loss(seeded(6)).item() > expected.item()


def test_the_adversary_goes_on_from_where_it_was(context: HardeningContext) -> None:
    method = receler(context)
    vectors = method.state()["vectors"]
    assert vectors.shape == (3, 3, 32) and vectors.min() >= 0 and vectors.max() < 1
    before = vectors.clone()
    first = method.loss(seeded(0)).item()
    assert method.loss(seeded(0)).item() == first, "a loss asked for again is the same until a step is taken"
    method.after_step()
    drawn, _ = method._examples(seeded(0))
    seen = {method._concept_of[caption] for caption in drawn.captions}
    moved = {row for row in range(3) if not torch.equal(vectors[row], before[row])}
    assert moved == seen
    assert receler(context, keep_adversary=False).state() == {}


def test_without_an_adversary_the_prompt_is_clean(context: HardeningContext) -> None:
    method = receler(context, attack_steps=0, locality=0.0)
    drawn, target = method._examples(seeded(2))
    clean = context.model.encode_prompts(drawn.captions).states
    expected = (context.model.unet(drawn.latents, drawn.t, clean).sample - target).pow(2).mean()
    assert method.loss(seeded(2)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_folding_names_what_it_changed(context: HardeningContext) -> None:
    receler(context)
    names = set(context.model.named_parameters())
    changed = fold(context.model)
    assert len(changed) == 8 and set(changed) <= names
    assert not erasers(context.model.unet)
