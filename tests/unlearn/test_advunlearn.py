"""AdvUnlearn: soft words in front of a prompt, the attack with them, and what learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.soft_words import encode_with_prefix
from safeguard.errors import UsageFault
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.progress import SilentProgress
from safeguard.seeds import derive
from safeguard.unlearn.advunlearn import AdvUnlearn, AdvUnlearnConfig
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common.adversarial import attack
from tests.contexts import MIXED, learning, moved_context, seeded, tiny_policy
from tests.tiny import tiny_pipeline, tiny_sdxl_pipeline

SMALL = {"batch_size": 2, "trajectory_steps": 4, "pool": 5, "warm_up": 0, "attack_steps": 8}


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def advunlearn(context: HardeningContext, **settings: object) -> AdvUnlearn:
    return AdvUnlearn(AdvUnlearnConfig.model_validate(SMALL | settings), context)


@pytest.mark.parametrize("xl", [False, True])
def test_the_embedding_of_a_word_in_front_is_that_word(xl: bool) -> None:
    model = DiffusionModel(tiny_sdxl_pipeline() if xl else tiny_pipeline())
    tokenizer = model.pipeline.tokenizer
    ids = [tokenizer(word).input_ids[1] for word in ("x", "axe")]
    encoders = [part for name, part in model.parts.items() if name != "unet"]
    words = torch.cat([encoder.get_input_embeddings().weight[ids] for encoder in encoders], dim=1)  # type: ignore[operator]
    prompts = ["cat", "old dog"]
    found = encode_with_prefix(model, prompts, words.expand(2, -1, -1))
    expected = model.encode_prompts([f"x axe {prompt}" for prompt in prompts])
    assert torch.allclose(found.states, expected.states, atol=1e-5)
    if xl:
        assert found.pooled is not None and expected.pooled is not None
        assert torch.allclose(found.pooled, expected.pooled, atol=1e-5)
    assert not any(encoder.get_input_embeddings()._forward_hooks for encoder in encoders)  # type: ignore[operator]


def test_the_text_encoder_learns_without_its_embeddings(context: HardeningContext) -> None:
    method = advunlearn(context)
    names = set(method.parameters())
    every = {f"text_encoder.{name}" for name, _ in context.model.parts["text_encoder"].named_parameters()}
    assert every - names == {name for name in every if "embeddings." in name}
    assert set(advunlearn(context, variant="x").parameters()) == {
        n for n in context.model.named_parameters() if "attn2" in n
    }
    values = list(learning(method.parameters()).values())
    gradients = torch.autograd.grad(method.loss(seeded(0)), values)
    assert all(gradient.abs().max() > 0 for gradient in gradients if gradient.dim() > 1)


def test_the_attack_brings_the_edited_model_towards_the_base_model(context: HardeningContext) -> None:
    method = advunlearn(context, attack_learning_rate=0.05, attack_steps=40, tokens=2)
    captions = ["axe in ice", "old max"]
    words = {"start": method._words(2, seeded(0)), "found": method.adversary(captions, seeded(0))}

    @torch.no_grad()
    def error(key: str) -> float:
        total = 0.0
        for seed in range(20):
            drawn, wanted = method._again(captions, seeded(seed))
            states = encode_with_prefix(context.model, captions, words[key])
            total += float((context.model.predict(drawn.latents, drawn.t, states) - wanted).pow(2).mean())
        return total

    assert error("found") < error("start")
    assert torch.equal(method.adversary(captions, seeded(0)), words["found"])


@pytest.mark.parametrize("source", ["frozen", "edited"])
def test_other_latents_are_of_the_same_captions(context: HardeningContext, source: str) -> None:
    method = advunlearn(context, latents_from=source)
    captions = [method._pool.captions[i] for i in (1, 3)]
    first, wanted = method._again(captions, seeded(0))
    second, _ = method._again(captions, seeded(1))
    assert first.captions == second.captions == captions
    assert not torch.equal(first.latents, second.latents)
    with torch.no_grad():
        states = context.teacher.encode_prompts(captions)
        assert torch.allclose(wanted, context.teacher.predict(first.latents, first.t, states), atol=1e-5)


def test_the_loss_is_esds_behind_the_words(context: HardeningContext) -> None:
    method = advunlearn(context)
    generator = seeded(4)
    drawn, target = method._examples(generator)
    words = method.adversary(drawn.captions, generator)
    states = encode_with_prefix(context.model, drawn.captions, words).states
    expected = (context.model.unet(drawn.latents, drawn.t, states).sample - target).pow(2).mean()
    assert method.loss(seeded(4)).item() == pytest.approx(expected.item(), rel=1e-4)
    plain = advunlearn(context, warm_up=1)
    clean = context.model.encode_prompts(drawn.captions).states
    expected = (context.model.unet(drawn.latents, drawn.t, clean).sample - target).pow(2).mean()
    assert plain.loss(seeded(4)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_released_attack_follows_the_sum_of_its_gradients() -> None:
    slope, start = torch.tensor([1.0, -2.0]), torch.zeros(2)

    def path(accumulate: bool) -> torch.Tensor:
        signs = iter([1.0, 1.0, -1.5])
        return attack(
            lambda x: next(signs) * (slope * x).sum(),
            start,
            steps=3,
            learning_rate=0.1,
            rule="sign",
            accumulate=accumulate,
        )

    assert torch.allclose(path(False), torch.tensor([-0.1, 0.1]))
    assert torch.allclose(path(True), torch.tensor([-0.3, 0.3]))


def test_the_attack_reaches_the_minimum_of_a_parabola() -> None:
    goal = torch.tensor([0.3, -0.2])
    found = attack(lambda x: (x - goal).pow(2).sum(), torch.zeros(2), steps=200, learning_rate=0.02)
    assert torch.allclose(found, goal, atol=1e-2) and not found.requires_grad


def test_erasure_and_retention_alternate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop written out: one Adam, one step of erasure, then two of distillation."""
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path))
    settings = {"steps": 4, "warm_up": 2, "attack_steps": 1, "trajectory_steps": 3, "pool": 2, "learning_rate": 1e-3}
    settings |= {"preserve_weight": 1.0, "retain": "alternate", "retain_steps": 2}
    policy = tiny_policy(unlearner={"name": "advunlearn", **settings})
    table, other = (set_up(policy, DiffusionModel(tiny_pipeline(0)), SilentProgress()) for _ in range(2))
    record = harden(table, "base")
    logged = {name: [value is not None for value in values] for name, values in record.series.items()}
    assert logged["erasure loss"] == [True, False, False] * 4
    assert logged["preservation loss"] == [False, True, True] * 4

    method = AdvUnlearn(AdvUnlearnConfig.model_validate(settings), other)
    values = list(learning(method.parameters()).values())
    adam, attacked = torch.optim.Adam(values, lr=1e-3), []
    for step in range(12):
        generator = seeded(derive(other.seed, "outer", step))
        adam.zero_grad()
        if step % 3 == 0:
            attacked.append(method.attacked)
            loss = method.loss(generator)
        else:
            distilled = method.preservation(generator)
            assert distilled is not None
            loss = distilled
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        adam.step()
        method.after_step()
    assert attacked == [False, False, True, True], "only steps of erasure warm up"
    for name, value in table.model.named_parameters().items():
        assert torch.equal(value, other.model.named_parameters()[name]), name


@pytest.mark.parametrize(("weight", "policy"), [(0.0, {}), (1.0, {"concepts": [MIXED[1]], "retain": []})])
def test_steps_of_retention_need_something_to_retain(weight: float, policy: dict[str, object]) -> None:
    with pytest.raises(UsageFault, match="there is nothing to retain"):
        advunlearn(moved_context(**policy), retain="alternate", preserve_weight=weight)
