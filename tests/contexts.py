"""A policy and a hardening context on a tiny random model, small enough for every method to run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from recipes.reference.vocabulary import NAMES, caption
from safeguard import reference
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.harden.context import set_up
from safeguard.io.opening import open_pipeline
from safeguard.policy.schema import Policy
from safeguard.progress import SilentProgress
from safeguard.unlearn.base import HardeningContext, Unlearner
from tests.tiny import tiny_pipeline


def tiny_policy(**harden: object) -> Policy:
    """Erase axes from a tiny model; keep hammers and cats."""
    return Policy.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": "tiny",
            "concepts": [
                {
                    "name": "axes",
                    "kind": "object",
                    "prompts": ["an axe", "a big axe"],
                    "anchor": "a thing",
                    "labels": ["axe"],
                    "related": [{"name": "hammers", "prompts": ["a hammer"], "labels": ["hammer"]}],
                    "detector": {"name": "clip"},
                }
            ],
            "retain": [{"name": "cats", "prompts": ["a cat"], "labels": ["cat"]}],
            "harden": {"unlearner": {"name": "esd"}, "images": 4, **harden},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )


def tiny_context() -> HardeningContext:
    """A fresh hardening context."""
    return set_up(tiny_policy(), DiffusionModel(tiny_pipeline(0)), SilentProgress())


MIXED: list[dict[str, object]] = [
    {
        "name": "axes",
        "kind": "object",
        "prompts": {"template": "{name} in {place}", "fill": {"name": ["axe"], "place": ["ice", "mud"]}},
        "anchor": "cup in {place}",
        "detector": {"name": "clip"},
    },
    {"name": "ink", "kind": "style", "prompts": ["ink art"], "anchor": "art", "detector": {"name": "clip"}},
    {"name": "max", "kind": "identity", "prompts": ["max", "old max"], "detector": {"name": "clip"}},
]
"""Concepts of three kinds: an anchor per prompt, one anchor, none."""


def moved_context(**policy: object) -> HardeningContext:
    """A hardening context whose model has left the base model, as during training."""
    declared = Policy.model_validate(tiny_policy().model_dump() | policy)
    context = set_up(declared, DiffusionModel(tiny_pipeline(0)), SilentProgress())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in context.model.unet.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    return context


def seeded(seed: int) -> torch.Generator:
    """A generator in a known state: equal seeds draw equal batches."""
    return torch.Generator().manual_seed(seed)


def abar(t: int) -> float:
    """Stable Diffusion's schedule, written out."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return float(np.cumprod(1 - betas)[t])


def answer(model: DiffusionModel, x: torch.Tensor, t: int, prompt: str) -> torch.Tensor:
    """What the bare network says about one latent (c, h, w)."""
    states = model.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    found: torch.Tensor = model.unet(x[None], torch.tensor([t]), encoder_hidden_states=states).sample[0]
    return found


def gradients(loss: torch.Tensor, parameters: dict[str, torch.nn.Parameter]) -> list[torch.Tensor]:
    """Of the loss with respect to the parameters."""
    return list(torch.autograd.grad(loss, list(parameters.values())))


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Distance relative to what was expected, over all tensors."""
    pairs = list(zip(found, expected, strict=True))
    return float(sum((a - b).pow(2).sum() for a, b in pairs) / sum(b.pow(2).sum() for _, b in pairs)) ** 0.5


def learning(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """The parameters, taking gradients as the engine lets them."""
    for value in parameters.values():
        value.requires_grad_(True)
    return parameters


def assert_target_is_constant(method: Unlearner, slow_loss: Callable[..., torch.Tensor]) -> None:
    """The loss has the gradient of ``slow_loss(method, seed)``, and not that with ``stop=False``."""
    parameters = learning(method.parameters())
    found = gradients(method.loss(seeded(1)), parameters)
    stopped = gradients(slow_loss(method, 1), parameters)
    through = gradients(slow_loss(method, 1, stop=False), parameters)
    assert apart(found, stopped) < 1e-2
    assert apart(found, through) > 0.1


def mixed_concepts(count: int) -> list[dict[str, object]]:
    """``count`` named objects and one style, whose anchors leave what the prompts draw otherwise."""
    detector = {"name": "clip"}
    objects: list[dict[str, object]] = [
        {"name": f"object-{i:02d}", "kind": "object", "prompts": [f"a {i:02d}"], "anchor": "a z", "detector": detector}
        for i in range(count)
    ]
    style = {"template": "{name} in x", "fill": {"name": ["cat", "hat"]}}
    return [*objects, {"name": "x", "kind": "style", "prompts": style, "anchor": "{name}", "detector": detector}]


def drawn_context(unlearner: dict[str, object], concepts: list[dict[str, object]]) -> HardeningContext:
    """A hardening context for these concepts that keeps hats; one random latent per prompt, so nothing is sampled."""
    policy = Policy.model_validate(
        {
            "version": 1,
            "name": "tiny",
            "model": "tiny",
            "concepts": concepts,
            "retain": [{"name": "hats", "prompts": ["hat"]}],
            "harden": {"unlearner": unlearner},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )
    model = DiffusionModel(tiny_pipeline(0))
    captions = [prompt for concept in policy.concepts for prompt in concept.prompt_list]
    mean = torch.randn(len(captions), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    forget = LatentSet(mean, torch.zeros_like(mean), model.encode_prompts(captions), captions, "drawn")
    return HardeningContext(
        policy=policy,
        model=model,
        teacher=model.frozen_copy(),
        concepts=list(policy.concepts),
        images={"concept": forget}.get,
        seed=0,
        progress=SilentProgress(),
    )


def names_context(unlearner: dict[str, object], kept: int) -> HardeningContext:
    """The reference model, 100 of its names to erase at once and ``kept`` others to keep; one random latent each."""
    names = [name.text for name in NAMES]
    erased, others = names[:100], names[100 : 100 + kept]
    detector = {"name": "clip"}
    policy = Policy.model_validate(
        {
            "version": 1,
            "name": "names",
            "model": "reference",
            "concepts": [
                {
                    "name": name.replace(" ", "-"),
                    "kind": "object",
                    "prompts": [caption(name)],
                    "anchor": "an emoji",
                    "detector": detector,
                }
                for name in erased
            ],
            "retain": [{"name": "others", "prompts": [caption(name) for name in others]}],
            "harden": {"unlearner": unlearner},
            "requirements": [{"probe": "*", "max_rate": 0.5}],
        }
    )
    model = DiffusionModel(open_pipeline(reference.path()))
    captions = [caption(name) for name in erased]
    mean = torch.randn(len(captions), *model.latent_shape, generator=seeded(0))
    forget = LatentSet(mean, torch.zeros_like(mean), model.encode_prompts(captions), captions, "drawn")
    return replace(set_up(policy, model, SilentProgress()), images={"concept": forget}.get)


def states(context: HardeningContext, text: str) -> torch.Tensor:
    """All text states of a prompt in the base model, (tokens, width), float64."""
    return context.teacher.encode_prompts([text]).states[0].double()
