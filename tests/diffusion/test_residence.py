"""Weights that nobody computes with lie in main memory, and come back as the same objects."""

from __future__ import annotations

import pytest
import torch

from safeguard.diffusion.model import DiffusionModel, Weights
from safeguard.diffusion.residence import off_device
from safeguard.diffusion.sampling import sample
from tests.tiny import ARCHITECTURES, tiny_pipeline


def drawn(model: DiffusionModel) -> torch.Tensor:
    return torch.from_numpy(sample(model, ["an axe"], [0], steps=2, guidance=2.0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_parked_copy_is_a_frozen_copy(architecture: str) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    model.unet.requires_grad_(True)
    teacher = model.frozen_copy(parked=True)
    assert not model.differing_parts(teacher)
    assert not any(value.requires_grad for value in teacher.named_parameters().values())
    with torch.no_grad():
        model.unet.conv_in.bias.add_(1.0)
    assert model.differing_parts(teacher) == {"unet"}
    with teacher.on_device():
        assert torch.equal(drawn(teacher), drawn(DiffusionModel(ARCHITECTURES[architecture](0))))


def test_on_a_cpu_nothing_moves() -> None:
    model = DiffusionModel(tiny_pipeline())
    where = [value.data_ptr() for value in model.named_parameters().values()]
    model.park()
    assert not model.parked
    with model.on_device() as same:
        assert same is model
    assert [value.data_ptr() for value in model.named_parameters().values()] == where


def test_a_model_computes_elsewhere_than_where_it_lies() -> None:
    model = DiffusionModel(tiny_pipeline(), device="meta")
    assert model.parked and model.device.type == model.alphas_cumprod.device.type == "meta"
    assert model.frozen_copy(parked=True).device == model.device


def test_a_snapshot_is_a_copy_in_main_memory() -> None:
    value = torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    kept = off_device(value)
    assert not kept.requires_grad and kept.stride() == value.stride()
    snapshot = Weights({"value": value})
    with snapshot, torch.no_grad():
        value.zero_()
    assert torch.equal(value, kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_holds_one_model_at_a_time() -> None:
    model = DiffusionModel(tiny_pipeline().to("cuda"))
    before, named = drawn(model), model.named_parameters()
    alone = torch.cuda.memory_allocated()
    teacher = model.frozen_copy(parked=True)
    assert torch.cuda.memory_allocated() == alone and teacher.parked
    snapshot = Weights(named)
    assert torch.cuda.memory_allocated() == alone
    model.park()
    assert torch.cuda.memory_allocated() < alone / 4
    with teacher.on_device():
        assert torch.equal(drawn(teacher), before)
    assert teacher.parked
    with model.on_device():
        assert torch.equal(drawn(model), before)
        assert all(value is named[name] for name, value in model.named_parameters().items())
        with snapshot, torch.no_grad():
            model.unet.conv_in.bias.add_(1.0)
        assert torch.equal(drawn(model), before)
