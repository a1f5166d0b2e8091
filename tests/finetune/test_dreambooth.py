"""DreamBooth and Custom Diffusion: a rare word before the captions, and images beside that keep the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeguard.config import Training
from safeguard.data.latents import LatentSet, generate
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, Run
from safeguard.policy.schema import FineTuningMethod
from safeguard.registry import finetuners
from safeguard.resilience.imma import IMMA, IMMAConfig
from safeguard.resilience.simulation import Simulations, Simulator
from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.ga import GradientAscent, GradientAscentConfig
from tests.contexts import drawn_context, mixed_concepts, seeded, tiny_context
from tests.tiny import tiny_pipeline

WORDS = {"dreambooth": "sks", "custom-diffusion": "ktn"}
methods = pytest.mark.parametrize("name", list(WORDS))


@pytest.fixture
def model() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0))


@pytest.fixture
def images(model: DiffusionModel) -> dict[str, LatentSet]:
    found = generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)
    return {caption: found.only([caption]) for caption in ("a cat", "a dog")}


def make(name: str, **settings: Any) -> FineTuner:
    return finetuners.make(FineTuningMethod.model_validate({"name": name, **settings}))


@methods
def test_the_loss_is_the_sum_of_both(name: str, model: DiffusionModel, images: dict[str, LatentSet]) -> None:
    tuner = make(name, prior_weight=0.25)
    tuner.preserve(images["a dog"])
    run = Run(model, images["a cat"], tuner, Training(batch_size=3), seed=0)
    found, generator = run.loss(seeded(4)), seeded(4)
    learnt = images["a cat"].batch(3, generator)
    torch.randint(1, (3,), generator=generator)  # which template
    states = model.encode_anew([f"{WORDS[name]} a cat"] * 3)
    first = model.denoising_loss(learnt.latents, states, generator)
    kept = images["a dog"].batch(3, generator)
    second = model.denoising_loss(kept.latents, model.encode_anew(["a dog"] * 3), generator)
    assert found.item() == pytest.approx((first + 0.25 * second).item(), rel=1e-5)
    assert tuner.prompts(["a cat", "an axe"]) == [f"{WORDS[name]} a cat", f"{WORDS[name]} an axe"]


@methods
def test_without_images_beside_it_does_not_run(name: str, model: DiffusionModel, images: dict[str, LatentSet]) -> None:
    run = Run(model, images["a cat"], make(name), Training(), seed=0)
    with pytest.raises(UsageFault, match="no images of the class"):
        run.step()


def test_dreambooth_trains_what_its_method_trains() -> None:
    lora = make("dreambooth", method={"name": "dora", "rank": 2, "text_encoder": True})
    assert lora.adds_parameters and not lora.twice_differentiable
    model = DiffusionModel(tiny_pipeline(0))
    assert lora.parts(model) == set(model.parts)
    assert not make("dreambooth").adds_parameters
    with pytest.raises(UsageFault, match="preserves a prior itself"):
        make("dreambooth", method={"name": "custom-diffusion"})


def test_custom_diffusion_changes_keys_and_values_and_a_word(
    model: DiffusionModel, images: dict[str, LatentSet]
) -> None:
    before = {name: value.detach().clone() for name, value in model.named_parameters().items()}
    tuner = make("custom-diffusion")
    tuner.preserve(images["a dog"])
    run = Run(model, images["a cat"], tuner, Training(steps=2, learning_rate=0.02), seed=0)
    run.step()
    now = model.named_parameters()
    assert [name.rpartition(".")[2] for name in set(now) - set(before)] == ["rows"]
    changed = {name for name, value in before.items() if not torch.equal(now[name], value)}
    assert changed == {name for name in before if ".attn2.to_k." in name or ".attn2.to_v." in name}


@methods
def test_simulations_hand_over_images_of_what_is_kept(name: str) -> None:
    context = tiny_context()
    settings = Simulations.model_validate({"methods": [{"name": name}], "losses": ["prior-preserving"], "steps": [1]})
    simulation = Simulator(settings, context).draw(0)
    assert type(simulation.tuner) is finetuners.get(name), "one prior is enough"
    simulation.start(context).step()
    simulation.tuner.detach(context.model)
    prior: Any = simulation.tuner
    assert set(prior.prior.captions) == {"a cat"} and set(simulation.data.captions) == {"an axe", "a big axe"}


def without_retained(context: HardeningContext) -> HardeningContext:
    context.policy = context.policy.model_copy(update={"retain": []})
    return context


@methods
def test_a_policy_without_such_images_is_told(name: str) -> None:
    context = without_retained(drawn_context({"name": "ga"}, mixed_concepts(2)))
    with pytest.raises(UsageFault, match="retain"):
        Simulator(Simulations.model_validate({"methods": [{"name": name}]}), context)
    erasing = GradientAscent(GradientAscentConfig(), context)
    with pytest.raises(UsageFault, match="retain"):
        IMMA(IMMAConfig.model_validate({"method": {"name": name}}), context, erasing)


@methods
def test_imma_immunises_against_it(name: str) -> None:
    context = tiny_context()
    settings = IMMAConfig.tiny().model_dump() | {"method": {"name": name}}
    objective = IMMA(IMMAConfig.model_validate(settings), context, GradientAscent(GradientAscentConfig(), context))
    for value in objective.parameters().values():
        value.requires_grad_(True)
    objective.compute_gradients(1)
    grads = [value.grad for value in objective.parameters().values() if value.grad is not None]
    assert grads and any(grad.abs().max() > 0 for grad in grads)
