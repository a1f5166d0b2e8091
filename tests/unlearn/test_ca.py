"""Concept ablation: its losses against slow ones, the stopped gradient, and prompts that keep their own anchors."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.ca import ConceptAblation, ConceptAblationConfig
from tests.contexts import (
    MIXED,
    abar,
    answer,
    assert_target_is_constant,
    learning,
    moved_context,
    seeded,
    tiny_policy,
)
from tests.tiny import ARCHITECTURES

ANCHORS = {"axe in ice": "cup in ice", "axe in mud": "cup in mud", "ink art": "art", "max": "", "old max": ""}


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def ca(context: HardeningContext, **settings: object) -> ConceptAblation:
    settings = {"batch_size": 4, "images": 5} | settings
    return ConceptAblation(ConceptAblationConfig.model_validate(settings), context)


def slow_loss(method: ConceptAblation, seed: int, *, stop: bool = True) -> torch.Tensor:
    generator, context, size = seeded(seed), method.context, method.config.batch_size
    rows = torch.randint(len(method.anchors), (size,), generator=generator)
    images = method.anchors.rows(rows, generator).latents
    anchors = [method.anchors.captions[row] for row in rows]
    prompts = []
    for one in anchors:
        own = [prompt for prompt, anchor in ANCHORS.items() if anchor == one]
        prompts.append(own[int(torch.randint(len(own), (1,), generator=generator))])
    t, noise = context.model.draw_noise(size, generator)
    losses = []
    for z, eps, time, prompt, anchor in zip(images, noise, t.tolist(), prompts, anchors, strict=True):
        x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * eps
        target = eps
        if method.config.variant == "model":
            target = answer(
                context.model if method.config.anchor_from == "edited" else context.teacher, x, time, anchor
            )
        losses.append((answer(context.model, x, time, prompt) - (target.detach() if stop else target)).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("settings", [{}, {"anchor_from": "frozen"}, {"variant": "noise"}])
def test_loss_agrees_with_a_slow_one(context: HardeningContext, settings: dict[str, object]) -> None:
    method = ca(context, **settings)
    assert method.loss(seeded(2)).item() == pytest.approx(slow_loss(method, 2).item(), rel=1e-4)


def test_no_gradient_passes_through_the_anchor(context: HardeningContext) -> None:
    method = ca(context)
    assert_target_is_constant(method, slow_loss)


def test_the_prior_is_the_denoising_loss_of_the_anchors_images(context: HardeningContext) -> None:
    method = ca(context, prior_weight=2.0)
    keep = method.preservation(seeded(3))
    generator = seeded(3)
    batch = method.anchors.batch(4, generator)
    t, noise = context.model.draw_noise(4, generator)
    again = seeded(3)
    captions = [method.anchors.captions[row] for row in torch.randint(5, (4,), generator=again)]
    slow = []
    for z, eps, time, caption in zip(batch.latents, noise, t.tolist(), captions, strict=True):
        x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * eps
        slow.append((answer(context.model, x, time, caption) - eps).pow(2).mean())
    assert keep is not None and keep.item() == pytest.approx(2 * torch.stack(slow).mean().item(), rel=1e-4)
    assert ca(context, prior_weight=0).preservation(seeded(3)) is None


def test_the_frozen_anchor_is_where_the_loss_vanishes(context: HardeningContext) -> None:
    """At the base model, a concept that is its own anchor has nothing to learn."""
    itself = [{**MIXED[1], "anchor": "ink art"}]
    unmoved = moved_context(concepts=itself)
    unmoved.model.unet.load_state_dict(unmoved.teacher.unet.state_dict())
    assert ca(unmoved, anchor_from="frozen").loss(seeded(0)).item() == pytest.approx(0.0, abs=1e-10)
    assert ca(context).loss(seeded(0)).item() > 1e-9


def test_every_prompt_has_images_of_its_own_anchor(context: HardeningContext) -> None:
    method = ca(context, images=5)
    assert sorted(method.anchors.captions) == sorted(ANCHORS.values())
    assert method._targets == {
        "cup in ice": ["axe in ice"],
        "cup in mud": ["axe in mud"],
        "art": ["ink art"],
        "": ["max", "old max"],
    }
    assert len(ca(context, images=None).anchors) == context.policy.harden.images


@pytest.mark.parametrize("group", ["cross-attention-kv", "attention", "full"])
def test_parameter_groups_of_the_paper(context: HardeningContext, group: str) -> None:
    names = ca(context, parameters=group).parameters()
    assert all(".attn2.to_k" in name or ".attn2.to_v" in name for name in names) == (group == "cross-attention-kv")


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_only_the_concepts_own_words_learn(architecture: str) -> None:
    """Words that prompt and anchor share, and all others, keep every bit; the denoiser is not touched."""
    concept = MIXED[0] | {"related": [{"name": "tools", "prompts": ["axe cup"]}]}
    policy = Policy.model_validate(tiny_policy().model_dump() | {"concepts": [concept]})
    context = set_up(policy, DiffusionModel(ARCHITECTURES[architecture](0)), SilentProgress())
    method = ca(context, parameters="token-embedding", images=2, preserve_weight=0.5, preserve_batch=2)
    parameters = learning(method.parameters())
    assert len(parameters) == (2 if architecture == "sdxl" else 1)
    before = {name: value.detach().clone() for name, value in context.model.named_parameters().items()}
    adam = torch.optim.Adam(parameters.values(), lr=0.01)
    for step in range(2):
        adam.zero_grad()
        keep = method.preservation(seeded(step))
        assert keep is not None
        (method.loss(seeded(step)) + keep).backward()
        adam.step()
    tokenizer = context.model.pipeline.tokenizer
    (axe,) = tokenizer("axe").input_ids[1:-1]
    for name, value in context.model.named_parameters().items():
        rows = (value != before[name]).flatten(1).any(1).nonzero().flatten() if name in parameters else None
        assert torch.equal(value, before[name]) if rows is None else rows.tolist() == [axe], name
    embeddings = [
        encoder.get_input_embeddings() for encoder in context.model.parts.values() if encoder is not context.model.unet
    ]
    assert not any(embedding._forward_hooks for embedding in embeddings)


def test_the_gradient_of_a_word_is_that_of_its_row(context: HardeningContext) -> None:
    """Against the whole table's gradient with all other rows struck out."""
    concept = [{**MIXED[0], "prompts": ["axe in ice"], "anchor": "cup in ice"}]
    table = moved_context(concepts=concept)
    method = ca(table, parameters="token-embedding", images=2)
    (parameter,) = learning(method.parameters()).values()
    (found,) = torch.autograd.grad(method.loss(seeded(0)), [parameter])
    free = ca(table, parameters="text-encoder", images=2)
    (whole,) = torch.autograd.grad(free.loss(seeded(0)), [parameter])
    (axe,) = table.model.pipeline.tokenizer("axe").input_ids[1:-1]
    assert torch.allclose(found[axe], whole[axe], rtol=1e-4, atol=1e-9) and found[axe].abs().max() > 0
    assert found.abs().sum() == found[axe].abs().sum() and whole.abs().sum() > 2 * whole[axe].abs().sum()
