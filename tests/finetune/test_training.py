"""How a fine-tune runs, whatever its method: against slow versions of the same, and what a method may change."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from safeguard.config import Training
from safeguard.data.latents import Batch, LatentSet, generate
from safeguard.diffusion import erasers
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.finetune.base import FineTuner, Run, fine_tune
from safeguard.finetune.dora import DoRA, DoRAConfig
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.finetune.lora import LoRA, LoRAConfig
from safeguard.finetune.prior_preservation import PriorPreservation
from tests.contexts import apart, seeded
from tests.tiny import tiny_pipeline


@pytest.fixture
def model() -> DiffusionModel:
    return DiffusionModel(tiny_pipeline(0))


@pytest.fixture
def data(model: DiffusionModel) -> LatentSet:
    return generate(model, ["a cat", "a dog"], 4, seed=0, steps=2)


def full() -> FineTuner:
    return FullFineTuning(FullConfig())


def slow_rate(training: Training, step: int) -> float:
    """In words: rise in a line to where the course begins, then along it to zero at the end."""
    if step < training.warm_up:
        return training.learning_rate * (step + 1) / (training.warm_up + 1)
    left = 1 - (step - training.warm_up) / (training.steps - training.warm_up)
    course = {"constant": 1.0, "linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2}
    return training.learning_rate * course[training.schedule]


@pytest.mark.parametrize("warm_up", [0, 3])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_learning_rate_takes_its_course(
    schedule: str, warm_up: int, model: DiffusionModel, data: LatentSet
) -> None:
    settings = {"steps": 8, "learning_rate": 0.1, "schedule": schedule, "warm_up": warm_up, "optimizer": "sgd"}
    training = Training.model_validate(settings)
    rates = [training.rate(step) for step in range(8)]
    assert rates == pytest.approx([slow_rate(training, step) for step in range(8)])
    assert rates[warm_up] == max(rates) == 0.1 and min(rates) > 0
    run = Run(model, data, full(), training, seed=0)
    found = []
    for _ in range(8):
        before = [value.detach().clone() for value in run.parameters]
        state = run.generator.get_state()
        grads = torch.autograd.grad(run.loss(run.generator), run.parameters, materialize_grads=True, allow_unused=True)
        run.generator.set_state(state)
        run.step()
        size = sum(float(grad.pow(2).sum()) for grad in grads) ** 0.5
        moved = sum(float((a - b).pow(2).sum()) for a, b in zip(run.parameters, before, strict=True)) ** 0.5
        found.append(moved / min(size, 1.0))
    assert found == pytest.approx(rates, rel=1e-3)


def test_a_warm_up_must_end() -> None:
    with pytest.raises(ValidationError, match="leaves nothing"):
        Training(steps=3, warm_up=3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_batches_have_the_mean_gradient(optimizer: str, model: DiffusionModel, data: LatentSet) -> None:
    settings = {"steps": 2, "learning_rate": 1e-2, "batch_size": 2, "accumulation": 3, "optimizer": optimizer}
    run = Run(model, data, full(), Training.model_validate(settings), seed=5)
    slow = DiffusionModel(tiny_pipeline(0))
    values = [value.requires_grad_(True) for value in slow.unet.parameters()]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    adam, generator = kind(values, lr=1e-2, weight_decay=0.01 if optimizer == "adamw" else 0.0), seeded(5)
    for _ in range(2):
        losses = []
        for _ in range(3):
            batch = data.batch(2, generator)
            losses.append(slow.denoising_loss(batch.latents, slow.encode_prompts(batch.captions), generator))
        mean = sum(losses) / 3
        grads = torch.autograd.grad(mean, values)
        size = sum(float(grad.pow(2).sum()) for grad in grads) ** 0.5
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad * min(1.0, 1.0 / (size + 1e-6))
        state = run.generator.get_state()
        whole = run.step_loss(run.generator)
        run.generator.set_state(state)
        assert run.step().item() == pytest.approx(mean.item(), rel=1e-5) == pytest.approx(whole.item(), rel=1e-5)
        adam.step()
    start = list(DiffusionModel(tiny_pipeline(0)).unet.parameters())
    moves = [[a.detach() - b for a, b in zip(found, start, strict=True)] for found in (run.parameters, values)]
    assert apart(*moves) < 1e-2


def test_precision_is_that_of_the_fine_tune_alone(model: DiffusionModel, data: LatentSet) -> None:
    half, seen = Training(steps=1, precision="bfloat16"), []
    model.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for step, _ in fine_tune(model, data, full(), half, seed=0):
        assert model.execution.precision == "float32", "what is looked at in between is what will be used"
        assert seen == [torch.bfloat16] * step
    seen.clear()
    model.execution.precision = "bfloat16"
    list(fine_tune(model, data, full(), Training(steps=1), seed=0))
    assert seen == [torch.bfloat16], "as the model is run otherwise"


def test_parts_of_a_batch_are_run_again_in_the_precision_they_were_run_in(
    model: DiffusionModel, data: LatentSet
) -> None:
    seen: list[torch.dtype] = []
    model.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model.execution.micro_batches.size = 1
    list(fine_tune(model, data, full(), Training(steps=1, batch_size=2, precision="bfloat16"), seed=0))
    assert len(seen) >= 4 and set(seen) == {torch.bfloat16}


def test_a_row_of_zeros_has_no_direction_for_dora(model: DiffusionModel, data: LatentSet) -> None:
    names = list(model.unet.state_dict())
    erasers.attach(model.unet, rank=2, activation="gelu", seed=0)
    with pytest.raises(UsageFault, match="row of zeros"):
        list(fine_tune(model, data, DoRA(DoRAConfig()), Training(steps=1), seed=0))
    assert [name for name in model.unet.state_dict() if "eraser" not in name] == names


class Renaming(LoRA):
    """A method with captions and a loss of its own."""

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        return [f"my {caption}" for caption in captions]

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        self.seen = batch.captions
        return 3 * super().loss(model, batch, generator)


def test_a_method_may_have_captions_and_a_loss_of_its_own(model: DiffusionModel, data: LatentSet) -> None:
    tuner = Renaming(LoRAConfig())
    run = Run(model, data, tuner, Training(batch_size=3), seed=0)
    generator = seeded(4)
    batch = data.batch(3, generator)
    states = model.encode_anew([f"my {caption}" for caption in batch.captions])
    expected = 3 * model.denoising_loss(batch.latents, states, generator)
    assert run.loss(seeded(4)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert tuner.seen == [f"my {caption}" for caption in batch.captions]


def test_prior_preservation_adds_the_loss_of_as_many_images_beside(model: DiffusionModel, data: LatentSet) -> None:
    tuner = Renaming(LoRAConfig())
    run = Run(model, data, PriorPreservation(tuner, data.only(["a dog"]), 0.5), Training(batch_size=3), seed=0)
    generator = seeded(4)
    parts = []
    for images, prefix, weight in ((data, "my ", 1.0), (data.only(["a dog"]), "", 0.5)):
        batch = images.batch(3, generator)
        states = model.encode_anew([prefix + caption for caption in batch.captions])
        parts.append(weight * 3 * model.denoising_loss(batch.latents, states, generator))
    assert run.loss(seeded(4)).item() == pytest.approx(sum(parts).item(), rel=1e-5)
    assert tuner.seen == ["a dog"] * 3
