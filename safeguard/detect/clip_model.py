"""CLIP checkpoints in open_clip's format, opened safely: a JSON configuration and a safetensors file, nothing else.

open_clip's own loader would also take pickled weights and fetch towers or tokenizers that a configuration names; here
only its network classes and its built-in tokenizer are used.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safeguard.diffusion.micro_batches import MicroBatches, rows_within
from safeguard.errors import EnvironmentFault, ModelFault, UsageFault
from safeguard.io.formats import read_json
from safeguard.io.hub import fetch, is_hub_id

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
CALIBRATION_FILE = "calibration.json"
BATCH = 64
"""Images or texts encoded at once,"""
PIXELS = 2**22
"""and pixels of the images together: sixteen of 512 x 512."""


def locate(checkpoint: str) -> Path:
    """The directory of a checkpoint: ``reference``, a local directory, or a hub id ``owner/name[@revision]``.

    Raises:
        ModelFault: the directory, or what the hub has, lacks one of the two files, or the hub has no such model.
        EnvironmentFault: the hub cannot be reached, or never was and the network is not allowed
            (:func:`safeguard.io.hub.network`).
        UsageFault: the name is none of the three.
    """
    if checkpoint == "reference":
        from safeguard import reference

        return reference.detector_path()
    name, _, revision = checkpoint.partition("@")
    if (directory := Path(checkpoint)).is_dir():
        found = directory
    elif is_hub_id(name) and (revision or "@" not in checkpoint):
        found = fetch(name, revision or None, (CONFIG_FILE, WEIGHTS_FILE))
    else:
        raise UsageFault(
            f"no CLIP checkpoint {checkpoint!r}", fix="give 'reference', a directory, or a hub id owner/name@revision"
        )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (found / file).is_file()]
    if missing:
        raise ModelFault(
            f"{missing[0]} is missing", fix="give a CLIP directory in open_clip's format", where=checkpoint
        )
    return found


def _require_open_clip() -> None:
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        raise EnvironmentFault(
            f"CLIP needs the package open_clip_torch, which does not import: {error}", fix="pip install open_clip_torch"
        ) from error


def _build(config: dict[str, Any], where: str) -> Any:
    """The untrained network of a ``model_cfg``; nothing is fetched for it."""
    from open_clip.model import CLIP, CustomTextCLIP

    config = dict(config)
    text, vision = dict(config.get("text_cfg", {})), dict(config.get("vision_cfg", {}))
    fetched = [key for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    if fetched:
        raise ModelFault(
            f"text_cfg.{fetched[0]} names files outside the checkpoint",
            fix="use a CLIP with its own text tower",
            where=where,
        )
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    try:
        return kind(**config | {"text_cfg": text, "vision_cfg": vision})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelFault(f"open_clip cannot build this model: {error}", fix="use a plain CLIP", where=where) from error


class ClipModel:
    """Image and text features of one checkpoint, normalised, float32.

    Args:
        checkpoint: see :func:`locate`.
        device: torch device.
    """

    def __init__(self, checkpoint: str, device: str = "cpu") -> None:
        from safetensors.torch import load_file

        _require_open_clip()
        self.directory = locate(checkpoint)
        self.device = torch.device(device)
        where = str(self.directory)
        try:
            config = read_json(self.directory / CONFIG_FILE)
            model_config = config["model_cfg"]
            preprocessing = config.get("preprocess_cfg", {})
            self.size = int(model_config["vision_cfg"]["image_size"])
            self.context = int(model_config["text_cfg"].get("context_length", 77))
            self.mean = torch.tensor(preprocessing.get("mean", _OPENAI_MEAN), dtype=torch.float32).view(3, 1, 1)
            self.std = torch.tensor(preprocessing.get("std", _OPENAI_STD), dtype=torch.float32).view(3, 1, 1)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelFault(f"{CONFIG_FILE} is not an open_clip configuration: {error!r}", where=where) from error
        model = _build(model_config, where)
        try:
            model.load_state_dict(load_file(self.directory / WEIGHTS_FILE))
        except Exception as error:  # safetensors and torch raise several kinds
            raise ModelFault(f"{WEIGHTS_FILE} does not fit its configuration: {error}", where=where) from error
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.logit_scale = math.exp(float(model.logit_scale))
        self._batches = MicroBatches(advice="close other programs, or take a larger device")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over configuration and weights."""
        digest = hashlib.sha256()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with (self.directory / name).open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=self.context)

    def _prepare(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) to normalised float (n, 3, size, size): shorter side resized, centre cropped."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        height, width = pixels.shape[-2:]
        if min(height, width) != self.size:
            ratio = self.size / min(height, width)
            target = (round(height * ratio), round(width * ratio))
            pixels = functional.interpolate(pixels, size=target, mode="bicubic", antialias=True, align_corners=False)
        top, left = (pixels.shape[-2] - self.size) // 2, (pixels.shape[-1] - self.size) // 2
        pixels = pixels[..., top : top + self.size, left : left + self.size].clamp(0, 1)
        return (pixels - self.mean) / self.std

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> Tensor:
        """Unit vectors (n, width) of uint8 images (n, h, w, 3), on the CPU."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UsageFault(f"images must be uint8 (n, height, width, 3), not {images.dtype} {images.shape}")

        def work(rows: slice) -> Tensor:
            features: Tensor = self.model.encode_image(self._prepare(images[rows]).to(self.device), normalize=True)
            return features.cpu()

        each = max(self.size**2, images.shape[1] * images.shape[2])
        parts = self._batches.in_batches(work, len(images), rows_within(PIXELS, each, BATCH))
        return torch.cat(parts) if parts else torch.zeros(0, 1)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (m, width) of texts, on the CPU; texts beyond the context length are cut."""
        tokens: Tensor = self._tokenizer(texts)

        def work(rows: slice) -> Tensor:
            features: Tensor = self.model.encode_text(tokens[rows].to(self.device), normalize=True)
            return features.cpu()

        return torch.cat(self._batches.in_batches(work, len(tokens), BATCH))


_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
