"""Captions in a file whose text states are to stay as they are, summed once per text encoder and kept in the cache.

A closed form needs of preserved states p no more than sum p p^T (d_in, d_in): what a projection W makes of them follows
as W sum p p^T. So hundreds of thousands of captions, hours of encoding, become one matrix that later runs read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from safeguard.cache import address, cache_dir
from safeguard.data.content_filter import keep_allowed
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import UsageFault
from safeguard.io.checkpoint import load_state, save_state
from safeguard.progress import Progress
from safeguard.unlearn.common.closed_form import moment
from safeguard.unlearn.common.text_states import CHUNK, encoders


def read_captions(file: str) -> list[str]:
    """One caption per line; empty lines and what the content filter refuses do not count.

    Raises:
        UsageFault: the file cannot be read as text, or holds no caption.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(
            f"captions cannot be read: {error}", fix="give a text file with one caption per line", where=file
        ) from error
    captions, _ = keep_allowed(line.strip() for line in lines if line.strip())
    if not captions:
        raise UsageFault("this file holds no caption", fix="write one caption per line", where=file)
    return captions


def captions_digest(file: str) -> str:
    """sha256 of the captions; empty for no file."""
    return hashlib.sha256("\n".join(read_captions(file)).encode()).hexdigest() if file else ""


def captions_moment(model: DiffusionModel, file: str, progress: Progress) -> Tensor:
    """sum p p^T over all text states of all captions of the file, (d_in, d_in) in float64."""
    captions = read_captions(file)
    path = cache_dir() / "captions" / f"{address([captions_digest(file), _encoder_digest(model)])}.safetensors"
    if path.exists():
        groups, _ = load_state(path)
        return groups["captions"]["moment"].to(model.device)
    width = model.empty.states.shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    with torch.no_grad(), progress.task("sum up captions", len(captions)) as task:
        for start in range(0, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            total += moment(model.encode_anew(chunk).states.flatten(0, 1).T)
            task.update(start + len(chunk))
    save_state(path, {"captions": {"moment": total}}, facts={"captions": len(captions)})
    return total


def _encoder_digest(model: DiffusionModel) -> str:
    """Of all that text states depend on: the encoders' weights and the tokenizers' words."""
    digest = hashlib.sha256()
    for name, (encoder, tokenizer) in encoders(model).items():
        words = [tokenizer.get_vocab(), tokenizer.pad_token, tokenizer.model_max_length]
        digest.update(json.dumps(words, sort_keys=True).encode())
        for key, value in encoder.named_parameters():
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
