"""SafeGen: the mosaic and its target from their definitions, the losses against slow ones, and no word of text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safeguard.unlearn.base import HardeningContext
from safeguard.unlearn.safegen import SafeGen, SafeGenConfig, mosaic, mosaic_noise
from tests.contexts import MIXED, abar, answer, apart, gradients, learning, moved_context, seeded


@pytest.fixture(scope="module")
def context() -> HardeningContext:
    return moved_context(concepts=MIXED)


def safegen(context: HardeningContext, **settings: object) -> SafeGen:
    return SafeGen(SafeGenConfig.model_validate({"batch_size": 4, "squares": 4} | settings), context)


def test_every_square_has_its_mean_colour() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    found = mosaic(images, 3)
    for image, tiles in zip(images, found, strict=True):
        for row in range(0, 12, 4):
            for column in range(0, 12, 4):
                square = tiles[row : row + 4, column : column + 4].reshape(-1, 3)
                assert (square == square[0]).all()
                mean = image[row : row + 4, column : column + 4].reshape(-1, 3).mean(0)
                assert np.abs(square[0] - mean).max() <= 0.501


@pytest.mark.parametrize("t", [1, 354, 981])
def test_with_the_consistent_noise_the_noised_image_is_the_noised_mosaic(t: int) -> None:
    z, m, eps = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=seeded(0))
    signal, scale = torch.tensor(abar(t) ** 0.5), torch.tensor((1 - abar(t)) ** 0.5)
    found = mosaic_noise(eps, z - m, signal.double(), scale.double())
    assert torch.allclose(signal * m + scale * found, signal * z + scale * eps, atol=1e-6)
    released = eps + (z - m)
    assert torch.allclose(found, released, atol=1e-2) == (t == 354), "they agree only where abar is 1/2"


def slow_loss(method: SafeGen, seed: int) -> float:
    generator, context, config = seeded(seed), method.context, method.config
    rows = torch.randint(len(context.forget), (4,), generator=generator)
    images = context.forget.rows(rows, generator).latents
    mosaics = method.mosaics.rows(rows, generator).latents
    t, noise = context.model.draw_noise(4, generator)
    losses = []
    for z, m, eps, time in zip(images, mosaics, noise, t.tolist(), strict=True):
        x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * eps
        target, weight = eps + z - m, 1.0
        if config.variant == "consistent":
            target = (x - abar(time) ** 0.5 * m) / (1 - abar(time)) ** 0.5
            ratio = abar(time) / (1 - abar(time))
            weight = min(ratio, config.snr_limit or ratio) / ratio
        losses.append(weight * (answer(context.model, x, time, "") - target).pow(2).mean().item())
    return config.erase_weight * sum(losses) / 4


@pytest.mark.parametrize("variant", ["consistent", "released"])
@pytest.mark.parametrize("snr_limit", [None, 1.0, 5.0])
@torch.no_grad()
def test_loss_agrees_with_a_slow_one(context: HardeningContext, variant: str, snr_limit: float | None) -> None:
    method = safegen(context, variant=variant, snr_limit=snr_limit)
    assert method.loss(seeded(4)).item() == pytest.approx(slow_loss(method, 4), rel=1e-3)


def test_a_whole_step_restated(context: HardeningContext) -> None:
    """From the drawn latents on: pictures, mosaics and their latents by the autoencoder itself, targets, weights."""
    method = safegen(context)
    parameters = learning(method.parameters())
    generator, forget, vae = seeded(8), context.forget, context.model.pipeline.vae
    rows = torch.randint(len(forget), (4,), generator=generator)
    noises = [torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2)]
    t = torch.randint(0, 1000, (4,), generator=generator)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    scale, losses = vae.config.scaling_factor, []
    for index, row in enumerate(rows.tolist()):
        time, eps = int(t[index]), noise[index]
        z = forget.mean[row] + forget.std[row] * noises[0][index]
        with torch.no_grad():
            pixels = vae.decode(forget.mean[row][None] / scale).sample[0]
            picture = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()
            tiles = picture.unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)).round()  # 16 pixels, 4 squares a side
            mosaic_pixels = tiles.repeat_interleave(4, 1).repeat_interleave(4, 2) / 127.5 - 1
            posterior = vae.encode(mosaic_pixels[None]).latent_dist
        m = scale * (posterior.mean[0] + posterior.std[0] * noises[1][index])
        signal, spread = abar(time) ** 0.5, (1 - abar(time)) ** 0.5
        x = signal * z + spread * eps
        weight = min(1.0, (spread / signal) ** 2)
        losses.append(weight * (answer(context.model, x, time, "") - (x - signal * m) / spread).pow(2).mean())
    found, expected = method.loss(seeded(8)), 0.1 * torch.stack(losses).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    assert apart(gradients(found, parameters), gradients(expected, parameters)) < 1e-2


@torch.no_grad()
def test_benign_images_are_denoised_without_a_prompt(context: HardeningContext) -> None:
    method = safegen(context)
    keep = method.preservation(seeded(4))
    generator, data = seeded(4), context.preserved
    assert data is not None and keep is not None
    latents = data.batch(4, generator).latents
    t, noise = context.model.draw_noise(4, generator)
    losses = []
    for z, eps, time in zip(latents, noise, t.tolist(), strict=True):
        x = abar(time) ** 0.5 * z + (1 - abar(time)) ** 0.5 * eps
        losses.append((answer(context.model, x, time, "") - eps).pow(2).mean().item())
    assert keep.item() == pytest.approx(0.9 * sum(losses) / 4, rel=1e-3)
    assert safegen(context, preserve_weight=0).preservation(seeded(4)) is None


@torch.no_grad()
def test_mosaics_stand_in_the_order_of_their_images(context: HardeningContext) -> None:
    method = safegen(context)
    assert method.mosaics.captions == context.forget.captions
    images = context.teacher.decode(context.forget.mean)
    alone, _ = context.teacher.encode_images(mosaic(images[1:2], 4))
    assert torch.allclose(method.mosaics.mean[1:2], alone, atol=1e-3)
    assert not torch.allclose(method.mosaics.mean[0], method.mosaics.mean[1], atol=1e-3)


def test_only_self_attention_learns(context: HardeningContext) -> None:
    assert all("attn1" in name for name in safegen(context).parameters())
