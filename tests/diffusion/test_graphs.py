"""Recorded passes answer and differentiate as the network itself does."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from safeguard.config import Training
from safeguard.diffusion.graphs import ROWS
from safeguard.diffusion.micro_batches import whole_batches
from safeguard.diffusion.model import DiffusionModel
from safeguard.finetune.base import Run
from safeguard.finetune.full import FullConfig, FullFineTuning
from safeguard.harden.context import set_up
from safeguard.progress import SilentProgress
from tests.contexts import tiny_policy
from tests.tiny import tiny_pipeline

gpu = pytest.mark.gpu


@pytest.fixture
def model() -> DiffusionModel:
    pipeline = tiny_pipeline(0)
    if torch.cuda.is_available():
        pipeline.to("cuda")
    return DiffusionModel(pipeline)


def loss(model: DiffusionModel, prompt: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, *model.latent_shape, generator=generator).to(model.device)
    return model.denoising_loss(latents, model.encode_prompts([prompt] * 2), generator)


def slopes(model: DiffusionModel, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.unet.parameters()))])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Length of the difference, relative to that of b."""
    return float((a - b).norm() / b.norm())


def test_nothing_is_recorded_without_a_gpu(model: DiffusionModel) -> None:
    if model.device.type == "cuda":
        pytest.skip("this machine has a GPU")
    alone = loss(model, "an axe", 1)
    model.execution.replays = True
    assert torch.equal(loss(model, "an axe", 1), alone)


def test_a_model_goes_when_nobody_holds_it(model: DiffusionModel) -> None:
    gc.collect()
    gc.disable()
    try:
        copied = model.frozen_copy()
        unet = weakref.ref(copied.unet)
        del copied
        assert unet() is None
    finally:
        gc.enable()


@gpu
def test_running_out_of_memory_gives_all_recordings_back(model: DiffusionModel) -> None:
    model.execution.replays = True
    copied, recorded = model.frozen_copy(), list[int]()
    with torch.no_grad():
        loss(model, "an axe", 1)
        loss(copied, "an axe", 1)

    def work() -> None:
        loss(model, "an axe", 1)
        recorded.append(len(model.execution.graphs._recordings))
        if len(recorded) == 1:
            raise torch.OutOfMemoryError("out of memory")

    with torch.no_grad():
        model.execution.within_memory(work)
    assert recorded == [2, 1]


@gpu
def test_large_batches_are_not_recorded(model: DiffusionModel) -> None:
    model.execution.replays = True
    prompts = ["an axe"] * (ROWS + 1)
    latents = torch.randn(len(prompts), *model.latent_shape).to(model.device)
    with torch.no_grad():
        model.denoising_loss(latents, model.encode_prompts(prompts), torch.Generator().manual_seed(0))
    assert not model.execution.graphs._recordings


@gpu
def test_other_arithmetic_is_another_recording(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    t, text = torch.tensor([10, 500], device=model.device), model.encode_prompts(["an axe", "a cat"])
    for fast in (True, False):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", fast)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", fast)
        answers = []
        for replays in (False, True):
            model.execution.replays = replays
            with torch.no_grad():
                answers.append(model.predict(latents, t, text))
        assert apart(answers[1], answers[0]) < 1e-5, "TF32 is off by some 1e-4"


@gpu
def test_the_last_gpu_records_too(model: DiffusionModel) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    moved = tiny_pipeline(0)
    moved.to(f"cuda:{torch.cuda.device_count() - 1}")
    far = DiffusionModel(moved)
    for seed in range(2):
        far.execution.replays = False
        expected = loss(far, "an axe", seed)
        far.execution.replays = True
        assert torch.allclose(loss(far, "an axe", seed), expected, rtol=1e-4)


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replays_are_the_network(model: DiffusionModel, precision: str) -> None:
    model.execution.precision = precision  # type: ignore[assignment]
    model.unet.requires_grad_(True)
    for seed in range(3):
        model.execution.replays = False
        expected = loss(model, "an axe", seed)
        wanted = slopes(model, expected)
        model.execution.replays = True
        answered = loss(model, "an axe", seed)
        found = slopes(model, answered)
        assert torch.allclose(answered, expected, rtol=1e-4)
        assert apart(found, wanted) < (2e-2 if precision == "bfloat16" else 1e-3)
        with torch.no_grad():
            for value in model.unet.parameters():
                value.mul_(0.99)


@gpu
def test_a_sum_of_losses_differentiates_each_where_it_was(model: DiffusionModel) -> None:
    model.unet.requires_grad_(True)
    wanted = slopes(model, loss(model, "an axe", 1) + 2 * loss(model, "a cat", 2))
    model.execution.replays = True
    found = slopes(model, loss(model, "an axe", 1) + 2 * loss(model, "a cat", 2))
    assert apart(found, wanted) < 1e-3


@gpu
def test_a_fine_tune_is_the_same(model: DiffusionModel) -> None:
    data = set_up(tiny_policy(), model, SilentProgress()).forget
    ends = []
    start = {name: value.detach().clone() for name, value in model.named_parameters().items()}
    for replays in (False, True):
        model.execution.replays = replays
        with torch.no_grad():
            for name, value in model.named_parameters().items():
                value.copy_(start[name])
        run = Run(
            model, data, FullFineTuning(FullConfig()), Training(steps=4, learning_rate=1e-2, optimizer="sgd"), seed=0
        )
        for _ in range(4):
            run.step()
        ends.append(torch.cat([value.detach().flatten().clone() for value in model.unet.parameters()]))
    before = torch.cat([start[f"unet.{name}"].flatten() for name, _ in model.unet.named_parameters()])
    eager, replayed = ends
    assert apart(replayed - before, eager - before) < 1e-2


@gpu
def test_whole_batches_are_differentiated_twice(model: DiffusionModel) -> None:
    model.unet.requires_grad_(True)
    model.execution.replays = True
    weights = list(model.unet.parameters())
    with whole_batches(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(loss(model, "an axe", 1), weights, create_graph=True)
    assert any(value.abs().sum() > 0 for value in torch.autograd.grad(sum(g.pow(2).sum() for g in first), weights))
