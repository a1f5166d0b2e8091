"""Parts of a pipeline that open and do not fit: a tokenizer its text encoder cannot follow, a scheduler nobody can run.

They would fail in the middle of a run, deep in a library. Here they fail at the start, with the file and the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig

from safeguard.diffusion.sampling import ddim, solver
from safeguard.io.contents import refuse

SCHEDULE_FILE = "scheduler_config.json"
CORRECT_SCHEDULE = f"correct the setting it names, or copy {SCHEDULE_FILE} from the model's publisher"
_SHORTEST = 3
"""Tokens of a prompt at least: start, end, and one word."""


def check_tokenizer(tokenizer: Any, config: CLIPTextConfig, folder: Path) -> None:
    """Every prompt becomes tokens that the text encoder has positions and embeddings for.

    Args:
        config: of the text encoder.
        folder: the tokenizer's.

    Raises:
        ModelFault: the context length does not fit, a token has no embedding, or there is nothing to pad with.
    """
    settings, positions = folder / "tokenizer_config.json", config.max_position_embeddings
    length = tokenizer.model_max_length
    if length > positions:
        what = "is missing" if length > 10**9 else f"is {length}"
        raise refuse(
            f"model_max_length {what}, the text encoder has {positions} positions",
            settings,
            f"set model_max_length to {positions}, or to what the model was trained with",
        )
    if length < _SHORTEST:
        raise refuse(f"model_max_length is {length}, no room for a word", settings, f"set it to {positions}")
    if tokenizer.pad_token_id is None:
        raise refuse("pad_token is missing", settings, 'set pad_token to what the model was trained with, often "!"')
    vocabulary = tokenizer.get_vocab()
    strange = sorted(token for token, index in vocabulary.items() if index >= config.vocab_size)
    if strange:
        name = "tokenizer.json" if (folder / "tokenizer.json").is_file() else "vocab.json"
        raise refuse(
            f"the token {strange[0]!r} has the number {vocabulary[strange[0]]}, and the text encoder has embeddings "
            f"for {config.vocab_size} (vocab_size)",
            folder / name,
            "take the token out of the tokenizer's files (added_tokens, pad_token), or use the encoder that has it",
        )


def check_scheduler(scheduler: Any, channels: int, folder: Path) -> None:
    """The noise schedule can be sampled: both samplers that are used here take one step of it.

    Args:
        channels: of a latent.
        folder: the scheduler's.

    Raises:
        ModelFault: they cannot.
    """
    path, latents = folder / SCHEDULE_FILE, torch.zeros(1, channels, 2, 2)
    for build in (solver, ddim):
        try:
            sampler = build(scheduler.config)
            sampler.set_timesteps(2)
            following = sampler.step(latents, sampler.timesteps[0], latents).prev_sample
            fits = following.shape == latents.shape and bool(following.isfinite().all())
            reason = "its first step is not finite"
        except Exception as error:  # a scheduler raises what it likes
            fits, reason = False, " ".join(str(error).split())[:300] or type(error).__name__
        if not fits:
            reason = "".join(letter if letter.isprintable() else "?" for letter in reason)
            raise refuse(
                f"this noise schedule cannot be sampled: {reason}",
                path,
                CORRECT_SCHEDULE,
            )
