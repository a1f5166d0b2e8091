"""IMMA against slow restatements that hold one network and two optimisers, and what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.config import Training
from safeguard.data.latents import LatentSet
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.parameters import select
from safeguard.errors import UsageFault
from safeguard.finetune.base import fine_tune
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.harden import phase
from safeguard.harden.context import set_up
from safeguard.harden.engine import harden
from safeguard.policy.schema import ResilienceMethod
from safeguard.progress import SilentProgress
from safeguard.resilience.imma import IMMA, IMMAConfig
from safeguard.seeds import derive
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.common import distillation
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from safeguard.unlearn.uce import UCE, UCEConfig
from tests.contexts import abar, apart, learning, moved_context, seeded, tiny_policy
from tests.tiny import tiny_pipeline

FULL, LORA = {"name": "full"}, {"name": "lora", "rank": 2}
UNBOUND = {"bound": 1e3}
ADAPTATION = {"learning_rate": 1e-2, "batch_size": 2}
"""On a random network losses are about 1."""
GA = {"name": "ga", "steps": 2, "batch_size": 2, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))


def imma(context: HardeningContext, **settings: Any) -> IMMA:
    training = ADAPTATION | settings.pop("training", {})
    config = IMMAConfig.model_validate(UNBOUND | {"training": training} | settings)
    return IMMA(config, context, GradientAscent(GradientAscentConfig(batch_size=2, bound=1e3), context))


def accumulated(objective: IMMA, step: int = 0) -> list[torch.Tensor]:
    values = list(objective.parameters().values())
    for value in values:
        value.requires_grad_(True)
    objective.compute_gradients(step)
    return [value.grad.clone() for value in values if value.grad is not None]


def state(context: HardeningContext) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in context.model.named_parameters().items()}


def slow_loss(model: DiffusionModel, data: LatentSet, count: int, generator: torch.Generator) -> torch.Tensor:
    """The denoising loss of one random batch, written out."""
    rows = torch.randint(len(data), (count,), generator=generator)
    x = data.mean[rows] + data.std[rows] * torch.randn(count, *data.mean.shape[1:], generator=generator)
    t = torch.randint(1000, (count,), generator=generator)
    noise = torch.randn(x.shape, generator=generator)
    level = torch.tensor([abar(int(time)) for time in t]).float().view(-1, 1, 1, 1)
    states = data.conditioning.states[rows]
    return (model.unet(level.sqrt() * x + (1 - level).sqrt() * noise, t, states).sample - noise).pow(2).mean()


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step on a gradient of norm 1 at most."""
    values = [value for group in optimizer.param_groups for value in group["params"]]
    found = torch.autograd.grad(loss, values)
    length = sum(float(gradient.double().pow(2).sum()) for gradient in found) ** 0.5
    for value, gradient in zip(values, found, strict=True):
        value.grad = gradient * min(1.0, 1.0 / (length + 1e-6))
    optimizer.step()


@pytest.mark.parametrize("variant", ["bilevel", "released"])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_one_step_adapts_and_ascends(variant: str, method: dict[str, Any]) -> None:
    """From a fresh start both variants are a plain fine-tune and the ascent's gradient at its end."""
    objective = imma(moved_context(), variant=variant, method=method, training={"steps": 2})
    before = state(objective.context)
    found = accumulated(objective)
    context = moved_context()
    theta = list(select(context.model, "attention").values())
    phi = objective._tuner.attach(context.model, derive(0, "imma") if variant == "released" else derive(0, "inner", 0))
    adam = torch.optim.AdamW(phi, lr=1e-2, weight_decay=0.01)
    generator = seeded(derive(0, "inner", 0))
    for _ in range(2):
        step(adam, slow_loss(context.model, context.forget, 2, generator))
    for value in theta:
        value.requires_grad_(True)
    loss = -slow_loss(context.model, context.forget, 2, seeded(derive(0, "ascent", 0)))
    assert apart(found, list(torch.autograd.grad(loss, theta))) < 1e-3
    after = state(objective.context)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    stays = method == FULL and variant == "released"
    assert changed == (objective.parameters().keys() if stays else set())
    if stays:
        adapted = list(objective.parameters().values())
        start = [before[name] for name in objective.parameters()]
        moves = [[value.detach() - old for value, old in zip(found, start, strict=True)] for found in (adapted, theta)]
        assert apart(*moves) < 1e-2


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_evaluations_average_the_ascents_along_the_adaptation(method: dict[str, Any]) -> None:
    found = accumulated(imma(moved_context(), method=method, training={"steps": 4}, evaluations=2))
    ends = [accumulated(imma(moved_context(), method=method, training={"steps": steps})) for steps in (2, 4)]
    context = moved_context()
    objective = imma(context, method=method, training={"steps": 4})
    generator = seeded(derive(0, "ascent", 0))
    context.forget.batch(2, generator)
    context.model.draw_noise(2, generator)  # the second point draws after the first
    theta = list(objective.parameters().values())  # before an adapter has names there
    with objective._adaptation(0, theta) as run:
        for _ in range(4):
            run.step()
        later, _ = objective._ascent(theta, generator)
    expected = [(a + b) / 2 for a, b in zip(ends[0], later, strict=True)]
    assert apart(found, expected) < 1e-3
    assert apart(found, ends[1]) > 1e-2


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_released_is_alternation_on_one_set_of_weights(method: dict[str, Any]) -> None:
    settings = {
        "name": "imma",
        "variant": "released",
        "method": method,
        "steps": 3,
        "learning_rate": 1e-3,
        "training": ADAPTATION,
    } | UNBOUND
    policy = tiny_policy(unlearner=GA, resilience=settings, images=4)
    table, erased = (set_up(policy, DiffusionModel(tiny_pipeline(0)), SilentProgress()) for _ in range(2))
    record = harden(table, "base")
    assert sum(value is not None for value in record.series["fine-tuning loss after inner steps"]) == 3
    harden(erased, "base", objective=ResilienceMethod(name="none"))
    start, model = state(erased), erased.model
    theta = list(select(model, "attention").values())
    tuner = imma(erased, method=method)._tuner
    phi = tuner.attach(model, derive(0, "imma"))
    adapt, ascend = torch.optim.AdamW(phi, lr=1e-2, weight_decay=0.01), torch.optim.Adam(theta, lr=1e-3)
    for value in theta:
        value.requires_grad_(True)
    for number in range(3):
        step(adapt, slow_loss(model, erased.forget, 2, seeded(derive(0, "inner", number))))
        step(ascend, -slow_loss(model, erased.forget, 2, seeded(derive(0, "ascent", number))))
    tuner.detach(model)
    found = state(table)
    names = list(select(model, "attention"))
    moved = [(found[name] - start[name]) for name in names]
    expected = [(value.detach() - start[name]) for name, value in zip(names, theta, strict=True)]
    assert apart(moved, expected) < 1e-2
    assert all(torch.equal(found[name], start[name]) for name in start.keys() - set(names))


@pytest.mark.parametrize("variant", ["bilevel", "released"])
def test_a_killed_run_continues_to_the_same_weights(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "name": "imma",
        "variant": variant,
        "method": LORA,
        "steps": 3,
        "training": ADAPTATION | {"steps": 1},
    } | UNBOUND

    def table() -> HardeningContext:
        policy = tiny_policy(unlearner={"name": "uce"}, resilience=settings, images=2)
        return set_up(policy, DiffusionModel(tiny_pipeline(0)), SilentProgress())

    whole, resumed = table(), table()
    harden(whole, "whole")
    monkeypatch.setattr(phase, "CHECKPOINT_SECONDS", 0.0)
    whole_step = IMMA.compute_gradients

    def killed(self: IMMA, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return whole_step(self, step)

    monkeypatch.setattr(IMMA, "compute_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        harden(table(), "killed")
    monkeypatch.setattr(IMMA, "compute_gradients", whole_step)
    harden(resumed, "killed")
    one, two = state(whole), state(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", ["bilevel", "released"])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_too_little_memory_half_way_leaves_nothing_behind(variant: str, method: dict[str, Any]) -> None:
    objective = imma(moved_context(), variant=variant, method=method)
    expected = accumulated(imma(moved_context(), variant=variant, method=method))
    before, kept = state(objective.context), {name: value.clone() for name, value in objective.state().items()}
    last, passes = 2 if variant == "released" else 11, list[int]()

    def shortage(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passes.append(1)
        if len(passes) == last:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = objective.context.model.unet.register_forward_pre_hook(shortage)
    with pytest.raises(torch.OutOfMemoryError):
        accumulated(objective)
    handle.remove()
    after = state(objective.context)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(kept[name], value) for name, value in objective.state().items())
    assert apart(accumulated(objective), expected) < 1e-5


def test_what_is_weighted_beside_the_ascent_is_added() -> None:
    context = moved_context()
    assert context.preserved is not None
    plain = accumulated(imma(context))
    both = accumulated(imma(context, erase_weight=2.0, preserve_weight=0.5, preserve_batch=3))
    method = GradientAscent(GradientAscentConfig(batch_size=2, bound=1e3), context)
    theta, generator = learning(select(context.model, "attention")), seeded(derive(0, "outer", 0))
    loss, kept = method.loss(generator), method.preservation(generator)
    assert kept is not None
    total = 2.0 * (loss + kept) + 0.5 * distillation(context, context.preserved, 3, generator)
    expected = torch.autograd.grad(total, list(theta.values()))
    assert apart([a - b for a, b in zip(both, plain, strict=True)], list(expected)) < 1e-3


def test_an_erased_concept_is_harder_to_learn_again() -> None:
    losses = []
    for resilience in (
        {"name": "none"},
        {"name": "imma", "steps": 12, "learning_rate": 3e-3, "method": LORA, "training": ADAPTATION | {"steps": 3}}
        | UNBOUND,
    ):
        policy = tiny_policy(unlearner=GA, resilience=resilience, images=4)
        table = set_up(policy, DiffusionModel(tiny_pipeline(0)), SilentProgress())
        harden(table, "base")
        training = Training(steps=3, learning_rate=1e-2, batch_size=2)
        batch = table.forget.rows(torch.arange(4), seeded(1))
        for _ in fine_tune(table.model, table.forget, LoRA(LoRAConfig(rank=2)), training, seed=99):
            with torch.no_grad():
                loss = table.model.denoising_loss(batch.latents, batch.conditioning, seeded(2)).item()
        losses.append(loss)
    assert losses[1] > 1.05 * losses[0]


def test_something_must_erase() -> None:
    context = moved_context()
    settings = IMMAConfig(warm_start=False)
    with pytest.raises(UsageFault, match="erases nothing"):
        IMMA(settings, context, GradientAscent(GradientAscentConfig(), context))
    assert IMMA(settings, context, UCE(UCEConfig(), context)).steps == 500
    assert IMMA(
        IMMAConfig(warm_start=False, erase_weight=1.0), context, GradientAscent(GradientAscentConfig(), context)
    )
