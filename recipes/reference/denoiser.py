"""The text encoder and the denoiser, trained jointly on the autoencoder's latents.

A Stable Diffusion in small: CLIP-shaped text encoder (4 layers of 128), UNet with cross-attention at 8 x 8 and 4 x 4,
epsilon prediction on the scaled-linear schedule, min-SNR-5 weights (Hang et al. 2023), 10 % empty captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from recipes.reference.descent import descend
from recipes.reference.vocabulary import NAMES, STYLES, Name, captions
from safeguard.io.checkpoint import load_state, save_state

WIDTH = 128
CONTEXT = 32
"""Tokens per prompt, special tokens included."""
VOCABULARY = 1200
LEARNING_RATE = 8e-4
BATCH = 48
WARM_UP = 300
EMA_DECAY = 0.998
EMPTY_CAPTIONS = 0.1
MIN_SNR = 5.0


def build_tokenizer(extra_text: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learnt from all captions and the given text."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    text = [line for name in NAMES for style in STYLES for _, line in captions(name, style)] + extra_text
    bpe.train_from_iterator(text, trainer)
    import json

    learnt = json.loads(bpe.to_str())["model"]
    tokens = dict.fromkeys(
        ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{c}</w>" for c in alphabet), *learnt["vocab"]]
    )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )
    assert len(tokenizer) == len(vocabulary), "the tokenizer lost its vocabulary"
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder for the tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """An untrained denoiser of 5.6 million parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's noise schedule with the DPM-Solver++ (2M) sampler."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        steps_offset=1,
    )


@dataclass(frozen=True)
class Latents:
    """Posterior of every training image: mean and std (n, 4, 16, 16), with the name and style of each row."""

    mean: torch.Tensor
    std: torch.Tensor
    names: list[Name]
    styles: list[str]


class _Captions:
    """Token ids of every caption of every image, drawn by weight; an empty one now and then."""

    def __init__(self, latents: Latents, tokenizer: CLIPTokenizer) -> None:
        texts = [captions(name, style) for name, style in zip(latents.names, latents.styles, strict=True)]
        flat = [line for row in texts for _, line in row] + [""]
        ids = tokenizer(flat, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
        self.empty = ids[-1]
        self.ids = ids[:-1].view(len(texts), -1, CONTEXT)
        self.weights = torch.tensor([weight for weight, _ in texts[0]])

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        choice = torch.multinomial(self.weights, len(rows), replacement=True, generator=generator)
        ids: torch.Tensor = self.ids[rows, choice].clone()
        ids[torch.rand(len(rows), generator=generator) < EMPTY_CAPTIONS] = self.empty
        return ids


def _ema_update(averages: Sequence[torch.Tensor], values: Sequence[torch.Tensor], step: int) -> None:
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averages), list(values), 1 - decay)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A linear warm-up, then a cosine."""
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - WARM_UP), eta_min=LEARNING_RATE / 50)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, WARM_UP)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [WARM_UP])


def _loss(
    model: torch.nn.ModuleDict, latents: Latents, words: _Captions, alphas: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The denoising loss of one random batch, weighted by min(SNR, :data:`MIN_SNR`) / SNR."""
    device = alphas.device
    rows = torch.randint(len(latents.mean), (BATCH,), generator=generator)
    noises = torch.randn(2, BATCH, *latents.mean.shape[1:], generator=generator)
    clean = (latents.mean[rows] + latents.std[rows] * noises[0]).to(device)
    noise = noises[1].to(device)
    t = torch.randint(0, 1000, (BATCH,), generator=generator).to(device)
    a = alphas[t].view(-1, 1, 1, 1)
    noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    states = model["text_encoder"](words.draw(rows, generator).to(device)).last_hidden_state
    predicted = model["unet"](noisy, t, encoder_hidden_states=states).sample
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=MIN_SNR) / snr
    loss: torch.Tensor = ((predicted - noise).pow(2).mean(dim=(1, 2, 3)) * weights[t]).mean()
    return loss


def train(
    latents: Latents,
    tokenizer: CLIPTokenizer,
    path: Path,
    *,
    steps: int,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Train to ``steps`` (continuing from ``path`` when it exists); returns the averaged (EMA) weights.

    ``path`` holds weights, averages, optimizer moments and step; it is written every 250 steps.
    """
    torch.manual_seed(seed)
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    model = torch.nn.ModuleDict({"text_encoder": text_encoder, "unet": unet}).to(device)
    unet.to(memory_format=torch.channels_last)
    values = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in values]
    optimizer = torch.optim.AdamW(values, lr=LEARNING_RATE, weight_decay=1e-2, betas=(0.9, 0.99))
    schedule = _schedule(optimizer, steps)
    start = 0
    if path.exists():
        groups, facts = load_state(path, {"adamw": optimizer})
        model.load_state_dict(groups["model"])
        averages = [groups["ema"][str(i)].to(device) for i in range(len(values))]
        start = facts["step"]
        for _ in range(start):
            schedule.step()
    alphas = build_scheduler().alphas_cumprod.to(device)
    words = _Captions(latents, tokenizer)
    generator = torch.Generator().manual_seed(seed + start)
    average = 1.0
    for step in range(start, steps):
        loss = _loss(model, latents, words, alphas, generator)
        descend(loss, values, optimizer, schedule)
        with torch.no_grad():
            _ema_update(averages, values, step)
        average = 0.99 * average + 0.01 * loss.item()
        progress(step + 1, steps, average)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            ema = {str(i): tensor for i, tensor in enumerate(averages)}
            save_state(path, {"model": model.state_dict(), "ema": ema}, {"adamw": optimizer}, {"step": step + 1})
    with torch.no_grad():
        for parameter, mean in zip(values, averages, strict=True):
            parameter.copy_(mean)
    return text_encoder, unet


def assemble(
    autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The five parts as an ordinary pipeline without a safety checker (the world is harmless)."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
