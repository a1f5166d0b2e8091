"""The autoencoder: 64 x 64 pixels to a 4 x 16 x 16 latent and back.

Trained on all artwork, not only on the names of the world, so that images it has never seen (a downstream user's own)
pass through it well. Once the denoiser trains on its latents the encoder is frozen; the decoder may go on learning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from recipes.reference.descent import descend
from safeguard.io.checkpoint import load_state, save_state

LEARNING_RATE = 2e-3
BATCH = 24
KL_WEIGHT = 1e-6
GRADIENT_WEIGHT = 1.0
LATENT_NOISE = 0.05
"""Standard deviation of the noise added to unit-variance latents, so that the decoder forgives the denoiser."""


def build() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + L1 of the spatial differences, which keeps edges; images (n, 3, 64, 64) in [-1, 1]."""
    loss = (output - target).abs().mean() + (output - target).pow(2).mean()
    for a, b in zip(_gradients(output), _gradients(target), strict=True):
        loss = loss + GRADIENT_WEIGHT * (a - b).abs().mean()
    return loss


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flips and shifts up to 4 pixels on a white border."""
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(-1)
    dy, dx = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), value=1.0)
    return padded[..., 4 + dy : 68 + dy, 4 + dx : 68 + dx]


def _loss(model: AutoencoderKL, batch: torch.Tensor, *, decoder_only: bool) -> torch.Tensor:
    """How far noisy latents decode from their images, and how far latents are from a normal distribution."""
    posterior = model.encode(batch).latent_dist
    latent = posterior.mode() if decoder_only else posterior.sample()
    latent = latent + LATENT_NOISE * latent.detach().std() * torch.randn_like(latent)
    loss = reconstruction_loss(model.decode(latent).sample, batch)
    return loss if decoder_only else loss + KL_WEIGHT * posterior.kl().mean()


def train(
    images: torch.Tensor,
    path: Path,
    *,
    steps: int,
    decoder_only: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> AutoencoderKL:
    """Train to ``steps`` (continuing from ``path`` when it exists) with a cosine schedule.

    Args:
        images: float tensor (n, 3, 64, 64) in [-1, 1].
        path: checkpoint file.
        decoder_only: freeze the encoder, so that latents stay what they are.
    """
    torch.manual_seed(seed)
    model = build().to(device, memory_format=torch.channels_last)
    stage = "decoder" if decoder_only else "autoencoder"
    trained = list(model.decoder.parameters()) + list(model.post_quant_conv.parameters())
    if not decoder_only:
        trained += list(model.encoder.parameters()) + list(model.quant_conv.parameters())
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.05)
    start = 0
    if path.exists():
        facts = load_state(path)[1]
        same = facts["stage"] == stage
        groups, facts = load_state(path, {"adamw": optimizer} if same else None)
        model.load_state_dict(groups["model"])
        if same:
            start = facts["step"]
            for _ in range(start):
                schedule.step()
    generator = torch.Generator().manual_seed(seed + start)
    average = 0.0
    for step in range(start, steps):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        batch = _augment(batch, generator).to(device, memory_format=torch.channels_last)
        loss = _loss(model, batch, decoder_only=decoder_only)
        descend(loss, trained, optimizer, schedule)
        average = loss.item() if step == start else 0.98 * average + 0.02 * loss.item()
        progress(step + 1, steps, average)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(path, {"model": model.state_dict()}, {"adamw": optimizer}, {"stage": stage, "step": step + 1})
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and standard deviation of every image: two tensors (n, 4, 16, 16), unscaled."""
    parts = [model.encode(chunk.to(model.device)).latent_dist for chunk in images.split(64)]
    return torch.cat([p.mean.cpu() for p in parts]), torch.cat([p.std.cpu() for p in parts])


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold the latents' channel-wise mean and deviation into the 1 x 1 convolutions around the bottleneck, in place.

    Latents of ``images`` come out with zero mean and unit variance per channel, decoding is unchanged, and
    ``scaling_factor`` becomes 1.
    """
    mean, _ = encode(model, images)
    shift = mean.mean(dim=(0, 2, 3))
    scale = mean.std(dim=(0, 2, 3))
    model.quant_conv.weight[:4] /= scale.view(4, 1, 1, 1)
    model.quant_conv.bias[:4] = (model.quant_conv.bias[:4] - shift) / scale
    model.quant_conv.bias[4:] -= 2 * scale.log()
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ shift
    model.post_quant_conv.weight *= scale.view(1, 4, 1, 1)
    model.register_to_config(scaling_factor=1.0)
