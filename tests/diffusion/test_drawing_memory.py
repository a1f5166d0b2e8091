"""Drawing, encoding, decoding and reading in batches that fit: whose sizes follow from the model, and halve if need be.

The shortage is a hook on the real network that raises what CUDA raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from safeguard.diffusion.execution import Task
from safeguard.diffusion.micro_batches import MicroBatches, rows_within
from safeguard.diffusion.model import DiffusionModel
from safeguard.diffusion.pixels import images_at_once as images_decoded
from safeguard.diffusion.sampling import initial_noise, sample, sample_latents
from safeguard.errors import EnvironmentFault
from tests.contexts import moved_context
from tests.tiny import ARCHITECTURES, tiny_pipeline, tiny_unet

PROMPTS = ["an axe", "a cat", "a dog", "an axe on ice", "mud"]


@contextmanager
def memory_for(network: torch.nn.Module, rows: int) -> Iterator[list[int]]:
    """A device on which no more than ``rows`` rows fit through this network; yields the batches that went in."""
    seen: list[int] = []

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor], given: dict[str, torch.Tensor]) -> None:
        seen.append(len(inputs[0] if inputs else given["input_ids"]))
        if seen[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = network.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def draw(model: DiffusionModel, count: int = len(PROMPTS)) -> np.ndarray:
    return sample(model, [PROMPTS[i % len(PROMPTS)] for i in range(count)], range(count), steps=2, guidance=2.0)


def encoded(model: DiffusionModel) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    return torch.cat(model.encode_images(images)).numpy()


def decoded(model: DiffusionModel) -> np.ndarray:
    return model.decode(torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(0))).astype(float)


@torch.no_grad()
def read(model: DiffusionModel) -> np.ndarray:
    return model.encode_anew(PROMPTS).states.numpy()


WORK: list[tuple[Task, str, Callable[[DiffusionModel], np.ndarray], float, int]] = [
    ("draw", "unet", lambda model: draw(model).astype(float), 1.0, 2),
    ("encode", "vae.encoder", encoded, 1e-5, 1),
    ("decode", "vae.decoder", decoded, 1.0, 1),
    ("read", "text_encoder", read, 1e-5, 1),
]
"""Task, network, work on five rows, how far it may be off, rows of the network for each."""


@pytest.mark.parametrize(("task", "path", "work", "off", "rows"), WORK, ids=[task for task, *_ in WORK])
@pytest.mark.parametrize(("fit", "halvings"), [(5, 0), (4, 1), (2, 2), (1, 3)])
def test_batches_are_halved_until_they_fit(
    task: Task, path: str, work: Callable[[DiffusionModel], np.ndarray], off: float, rows: int, fit: int, halvings: int
) -> None:
    model = DiffusionModel(tiny_pipeline())
    whole = work(model)
    part, _, child = path.partition(".")
    network = getattr(model.pipeline, part).get_submodule(child)
    with memory_for(network, fit * rows) as seen:
        found = work(model)
        assert np.abs(found - whole).max() <= off
        batches = model.execution.batches[task]
        assert (batches.halved, batches.size) == (halvings, {0: None, 1: 3, 2: 2, 3: 1}[halvings])
        assert model.frozen_copy().execution.batches[task] is batches
        seen.clear()
        work(model)
        assert max(seen) <= fit * rows, "they stay small"
    assert model.execution.micro_batches.size is None, "fine-tunes need not go in smaller parts"


@pytest.mark.parametrize(("path", "work"), [(path, work) for _, path, work, *_ in WORK])
def test_one_too_much_is_a_fault(path: str, work: Callable[[DiffusionModel], np.ndarray]) -> None:
    model = DiffusionModel(tiny_pipeline())
    part, _, child = path.partition(".")
    network = getattr(model.pipeline, part).get_submodule(child)
    with memory_for(network, 0), pytest.raises(EnvironmentFault, match="one image at a time") as caught:
        work(model)
    assert "parameters" not in caught.value.fix


def test_what_is_done_is_not_done_again() -> None:
    done: list[tuple[int, int]] = []

    def work(rows: slice) -> int:
        if rows.start >= 4 and rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.append((rows.start, rows.stop))
        return rows.start

    assert MicroBatches().in_batches(work, 7, 4) == [0, 4, 5, 6]
    assert done == [(0, 4), (4, 5), (5, 6), (6, 7)]


def test_other_errors_pass() -> None:
    def work(rows: slice) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        MicroBatches().in_batches(work, 7, 4)


def test_batches_of_small_images_are_what_they_always_were() -> None:
    """On a CPU a result depends in its last bits on what else is in its batch."""
    model = DiffusionModel(tiny_pipeline())
    with memory_for(model.unet, 1000) as seen:
        images = draw(model, 50)
    assert seen == [96, 96, 4, 4]
    with memory_for(model.pipeline.vae.decoder, 1000) as seen:
        draw(model, 50)
    assert seen == [32, 16, 2]
    with memory_for(model.pipeline.vae.encoder, 1000) as seen:
        model.encode_images(np.concatenate([images, images[:15]]))
        model.encode_images(images)
    assert seen == [33, 32, 50]


def test_images_keep_the_layout_in_memory_that_the_decoder_gave_them() -> None:
    """Encoding them again differs by it in its last bits, whatever the number of batches."""
    model = DiffusionModel(tiny_pipeline())
    with torch.no_grad():
        for count in (2, 33):
            latents = torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(0))
            parts = [model.pipeline.vae.decode(part).sample for part in torch.split(latents, 32)]
            images = model.decode(latents * model.pipeline.vae.config.scaling_factor)
            assert images.strides == torch.cat(parts).to(torch.uint8).permute(0, 2, 3, 1).numpy().strides


def test_large_images_come_in_small_batches() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet = tiny_unet(sample_size=64).eval()
    model = DiffusionModel(pipeline)
    with memory_for(model.unet, 1000) as seen, torch.no_grad():
        prompt, noise = model.encode_prompts(PROMPTS * 2), initial_noise(model, range(10))
        sample_latents(model, prompt, noise, steps=1, guidance=2.0)
        assert seen == [16, 4], "eight images and their empty prompts, and the two that are left"
        seen.clear()
        t = torch.zeros(20, dtype=torch.int64)
        model.predict(noise.repeat(2, 1, 1, 1), t, model.encode_prompts(PROMPTS * 4))
        assert seen == [16, 4], "so do rows that are only answered"


def test_batches_follow_from_the_size_of_an_image() -> None:
    assert [rows_within(100, each, 8) for each in (1, 12, 13, 100, 1000)] == [8, 8, 7, 1, 1]
    assert [images_decoded(side, side) for side in (64, 128, 256, 512, 768, 1024)] == [32, 32, 8, 2, 1, 1]


# -- block by block --------------------------------------------------------------------------------------------------


def test_one_row_too_much_is_differentiated_block_by_block() -> None:
    """The last resort of a fine-tune, with the same gradient, and what is answered only does not change."""
    context = moved_context()
    model, values = context.model, list(context.model.unet.requires_grad_(True).parameters())
    batch = context.forget.rows(torch.arange(2), torch.Generator().manual_seed(0))

    def work() -> tuple[torch.Tensor, ...]:
        loss = model.denoising_loss(batch.latents, batch.conditioning, torch.Generator().manual_seed(1))
        return torch.autograd.grad(loss, values)

    whole = work()
    model.execution.micro_batches.size, model.execution.micro_batches.blockwise = 1, True
    for found, expected in zip(work(), whole, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert model.unet.is_gradient_checkpointing
    model.execution.micro_batches.blockwise = False
    work()
    assert not model.unet.is_gradient_checkpointing


# -- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_held_in_half_precision_draw_nearly_the_same(architecture: str) -> None:
    model = DiffusionModel(ARCHITECTURES[architecture](0))
    whole = draw(model).astype(float)
    model.hold_in("bfloat16")
    assert {value.dtype for value in model.named_parameters().values()} == {torch.bfloat16}
    assert model.pipeline.vae.dtype == torch.float32
    found = draw(model).astype(float)
    assert 0 < np.abs(found - whole).mean() < 4, "of 255"
    model.hold_in("float32")
    assert model.encode_prompts(["an axe"]).states.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pipeline_in_half_precision_draws(architecture: str) -> None:
    pipeline = ARCHITECTURES[architecture](0).to(torch.bfloat16)
    images = draw(DiffusionModel(pipeline))
    assert images.shape == (5, 16, 16, 3) and images.std() > 0
