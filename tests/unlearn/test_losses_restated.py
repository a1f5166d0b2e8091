"""Losses with an adversary inside, written a second time from their formulas, on the same batch.

Nothing here calls the methods' own code: latents are read from the pool of the base model's runs and random numbers
drawn again; text states, networks, attention, attacks and targets are plain torch and transformers. Losses must agree,
and so must their gradients with respect to what learns.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from safeguard.unlearn.advunlearn import AdvUnlearn, AdvUnlearnConfig
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.race import RACE, RACEConfig
from safeguard.unlearn.receler import Receler, RecelerConfig
from tests.contexts import MIXED, answer, apart, gradients, learning, moved_context, seeded

ANCHORS = {"axe in ice": "cup in ice", "axe in mud": "cup in mud", "ink art": "art", "max": "", "old max": ""}
CONCEPTS = [["axe in ice", "axe in mud"], ["ink art"], ["max", "old max"]]
ROWS, STEPS = 3, 4
SHARED: dict[str, Any] = {"batch_size": ROWS, "trajectory_steps": STEPS, "pool": 5, "eta": 1.5}


@pytest.fixture(scope="module")
def drawn_once() -> HardeningContext:
    return moved_context(concepts=MIXED)


@pytest.fixture
def context(drawn_once: HardeningContext) -> HardeningContext:
    return replace(drawn_once, model=drawn_once.model.frozen_copy())


def text(context: HardeningContext, prompt: str) -> torch.Tensor:
    """Text states of the edited model, (tokens, width)."""
    found: torch.Tensor = context.model.pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0]
    return found


def batch(method: Any, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor]:
    """Latents, timesteps, captions, and the noise their runs began with."""
    pool = method._pool
    steps = torch.randint(STEPS, (ROWS,), generator=generator)
    runs = torch.randint(5, (ROWS,), generator=generator)
    return pool.latents[steps, runs], pool.times[steps], [pool.captions[run] for run in runs], pool.latents[0, runs]


@torch.no_grad()
def esd_targets(context: HardeningContext, x: torch.Tensor, t: torch.Tensor, captions: list[str]) -> torch.Tensor:
    rows = []
    for latent, time, caption in zip(x, t.tolist(), captions, strict=True):
        anchor, concept, empty = (answer(context.teacher, latent, time, p) for p in (ANCHORS[caption], caption, ""))
        rows.append(anchor - 1.5 * (concept - empty))
    return torch.stack(rows)


@torch.no_grad()
def base_answers(context: HardeningContext, x: torch.Tensor, t: torch.Tensor, captions: list[str]) -> torch.Tensor:
    rows = zip(x, t.tolist(), captions, strict=True)
    return torch.stack([answer(context.teacher, latent, time, caption) for latent, time, caption in rows])


def agree(method: Any, restated: torch.Tensor, seed: int) -> None:
    parameters = learning(method.parameters())
    found = method.loss(seeded(seed))
    assert found.item() == pytest.approx(restated.item(), rel=1e-3)
    assert apart(gradients(found, parameters), gradients(restated, parameters)) < 1e-2


def test_race(context: HardeningContext) -> None:
    method = RACE(RACEConfig.model_validate(SHARED | {"warm_up": 0, "epsilon": 0.2, "attack_steps": 4}), context)
    generator = seeded(1)
    x, t, captions, noise = batch(method, generator)
    clean = torch.stack([text(context, caption) for caption in captions])
    states = clean + 0.2 * (2 * torch.rand(clean.shape, generator=generator) - 1)

    def inside(states: torch.Tensor) -> torch.Tensor:
        rows = []
        for row, free in zip(states, clean, strict=True):
            boxed = torch.minimum(torch.maximum(row, free - 0.2), free + 0.2)
            rows.append(boxed.clamp(free.min(), free.max()))
        return torch.stack(rows)

    states = inside(states)
    for _ in range(4):
        states = states.detach().requires_grad_()
        error = (context.model.unet(x, t, states).sample - noise).pow(2).sum()
        (gradient,) = torch.autograd.grad(error, states)
        states = inside(states.detach() - 0.05 * gradient.sign())
    target = esd_targets(context, x, t, captions)
    learning(method.parameters())
    agree(method, (context.model.unet(x, t, states.detach()).sample - target).pow(2).mean(), 1)


def test_advunlearn(context: HardeningContext) -> None:
    settings = SHARED | {"warm_up": 0, "attack_steps": 3, "tokens": 2, "attack_learning_rate": 0.05}
    method = AdvUnlearn(AdvUnlearnConfig.model_validate(settings), context)
    encoder, tokenizer, pool = context.model.pipeline.text_encoder, context.model.pipeline.tokenizer, method._pool
    table = encoder.get_input_embeddings().weight
    (name,) = (name for name, value in encoder.named_parameters() if value is table)

    def behind(words: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Text states with two new words of the vocabulary in front of every caption."""
        rows = []
        for pair, caption in zip(words, captions, strict=True):
            start, *rest = tokenizer(caption).input_ids
            ids = [start, len(table), len(table) + 1, *rest]
            ids += [tokenizer.pad_token_id] * (16 - len(ids))
            longer = {name: torch.cat([table.detach(), pair])}
            rows.append(torch.func.functional_call(encoder, longer, (torch.tensor([ids]),))[0][0])
        return torch.stack(rows)

    generator = seeded(2)
    x, t, captions, _ = batch(method, generator)
    words = table.detach()[torch.randint(len(table), (ROWS, 2), generator=generator)].clone().requires_grad_()
    adam = torch.optim.Adam([words], lr=0.05)
    for _ in range(3):
        runs = []
        for caption in captions:
            choices = [run for run, other in enumerate(pool.captions) if other == caption]
            runs.append(choices[int(torch.randint(len(choices), (), generator=generator))])
        steps = torch.randint(STEPS, (ROWS,), generator=generator)
        again, times = pool.latents[steps, runs], pool.times[steps]
        wanted = base_answers(context, again, times, captions)
        error = (context.model.unet(again, times, behind(words, captions)).sample - wanted).pow(2).mean()
        (words.grad,) = torch.autograd.grad(error, words)
        adam.step()
    target = esd_targets(context, x, t, captions)
    learning(method.parameters())
    agree(method, (context.model.unet(x, t, behind(words.detach(), captions)).sample - target).pow(2).mean(), 2)


@pytest.mark.parametrize("variant", ["linear", "gelu"])
def test_receler(context: HardeningContext, variant: str) -> None:
    plain = copy.deepcopy(context.model.unet)
    settings = SHARED | {"rank": 4, "attack_steps": 3, "adversarial_tokens": 3, "locality": 0.7, "threshold": 0.4}
    method = Receler(RecelerConfig.model_validate(settings | {"variant": variant}), context)
    parameters = method.parameters()
    with torch.no_grad():
        for key, value in parameters.items():
            if ".up." in key:
                value.copy_(0.2 * torch.randn(value.shape, generator=seeded(len(key))))
    vectors = method.state()["vectors"].clone()
    erased: list[torch.Tensor] = []
    for name, module in plain.named_modules():
        if name.endswith("attn2"):
            down, up = (
                [parameters[f"unet.{name}.eraser.{layer}.{part}"] for part in ("weight", "bias")]
                for layer in ("down", "up")
            )
            module.register_forward_hook(_restated_eraser(down, up, variant, erased))

    x, t, captions, _ = batch(method, seeded(3))
    lengths = [len(context.model.pipeline.tokenizer(caption).input_ids) for caption in captions]
    clean = torch.stack([text(context, caption) for caption in captions])
    wanted = base_answers(context, x, t, captions)
    concept = [next(i for i, prompts in enumerate(CONCEPTS) if caption in prompts) for caption in captions]

    def attacked(vectors: torch.Tensor) -> torch.Tensor:
        states = clean.clone()
        for row, (length, which) in enumerate(zip(lengths, concept, strict=True)):
            for offset in range(min(3, 16 - (length - 1))):  # from the end token on
                states[row, length - 1 + offset] = vectors[which, offset]
        return states

    found = vectors.clone().requires_grad_()
    adam = torch.optim.Adam([found], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        error = (plain(x, t, attacked(found)).sample - wanted).pow(2).mean()
        (found.grad,) = torch.autograd.grad(error, found)
        adam.step()

    heat = _attention_to_words(context, x, t, clean, lengths)
    mask = torch.stack([((row - row.min()) / (row.max() - row.min()) >= 0.4).float() for row in heat])
    assert 0 < mask.mean() < 1
    learning(parameters)
    erased.clear()
    target = esd_targets(context, x, t, captions)
    restated = (plain(x, t, attacked(found.detach())).sample - target).pow(2).mean()
    assert len(erased) == 4
    for output in erased:  # (rows, 16 pixels, channels), as large as the attention maps
        away = output.pow(2).mean(2) * (1 - mask)
        restated = restated + 0.7 / 4 * (away.sum(1) / (1 - mask).sum(1)).mean()
    agree(method, restated, 3)
    method.after_step()
    seen = sorted(set(concept))
    assert torch.allclose(method.state()["vectors"][seen], found.detach()[seen], atol=1e-3)


def _restated_eraser(down: list[Any], up: list[Any], variant: str, erased: list[torch.Tensor]) -> Any:
    def add(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        inner = F.linear(output, *down)
        erased.append(F.linear(F.gelu(inner) if variant == "gelu" else inner, *up))
        return output + erased[-1]

    return add


@torch.no_grad()
def _attention_to_words(
    context: HardeningContext, x: torch.Tensor, t: torch.Tensor, states: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """Mean probability, over layers, heads and the prompt's words, of every pixel, (rows, pixels)."""
    unet, layers = copy.deepcopy(context.teacher.unet), []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            seen: dict[str, torch.Tensor] = {}
            for side in ("to_q", "to_k"):
                module.get_submodule(side).register_forward_hook(
                    lambda layer, inputs, output, seen=seen, side=side: seen.__setitem__(side, output)
                )
            layers.append((module.heads, seen))
    unet(x, t, states)
    total = torch.zeros(ROWS, 16)
    for heads, seen in layers:
        for row, length in enumerate(lengths):
            q, k = (seen[side][row].chunk(heads, dim=-1) for side in ("to_q", "to_k"))
            for one, other in zip(q, k, strict=True):
                weights = (one @ other.T / sqrt(one.shape[-1])).softmax(-1)
                total[row] += weights[:, 1 : length - 1].mean(1) / (heads * len(layers))
    return total
