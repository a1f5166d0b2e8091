"""A pipeline written to disk as a diffusers directory: as a whole or not at all, the same bytes for the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from safeguard.diffusion.erasers import erasers
from safeguard.diffusion.storage import cast_to_stored
from safeguard.errors import EnvironmentFault, TrainingFault, UsageFault
from safeguard.files import atomic_directory, check_writable, nearest
from safeguard.io.companions import Companions
from safeguard.io.manifest import manifest
from safeguard.io.opening import quiet
from safeguard.results.hardening import RECORD_FILE

OVERHEAD = 64 * 2**20
"""Bytes besides weights: tokenizers, configurations, records."""
_LOCAL_SETTINGS = ("_name_or_path", "is_local", "local_files_only")
"""Where the model was loaded from: nobody's business, and it would change the digests."""


def save_pipeline(
    pipeline: DiffusionPipeline,
    directory: Path,
    extra: Mapping[str, str],
    *,
    stored: Mapping[str, torch.dtype] | None = None,
    companions: Companions | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Write a pipeline as safetensors; ``model_index.json`` comes last, then the whole is renamed.

    Args:
        pipeline: what to write; its tokenizers lose the padding of their last call.
        directory: where to. An empty directory or one that was written by us (it has ``hardening.json``) is replaced.
        extra: file name -> text, written beside the components: ``policy.resolved.yaml``, ``hardening.json``.
        stored: name -> type of the tensors on disk; the pipeline has these types afterwards. None: those it has.
        companions: what is carried over from the base model.
        overwrite: replace a directory of any content.

    Returns:
        The manifest of the new directory.

    Raises:
        UsageFault: the directory holds something else, a name in ``extra`` is no plain file name, or the model holds
            linear erasers, which belong into its weights.
        TrainingFault: a weight is NaN or infinite; nothing is written.
        ModelFault: what is carried over changed since it was opened; nothing is written.
        EnvironmentFault: not enough disk space, or writing failed; what was there is untouched.
    """
    check_target(directory, overwrite)
    _check_names(extra, pipeline)
    cast_to_stored(pipeline, stored or {})
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    _check_weights(modules)
    _check_folded(pipeline)
    _check_space(directory, modules)
    quiet()
    with atomic_directory(directory) as temporary:
        for name, text in extra.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _reset_tokenizers(pipeline)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        for path in temporary.rglob("*.json"):
            if path.name not in extra:
                _forget_origin(path)
        if companions:
            companions.write(temporary)
        written = manifest(temporary)
    return written


def check_target(directory: Path, overwrite: bool) -> None:
    """Refuse, before any work, a directory that :func:`save_pipeline` could not or should not write.

    Raises:
        UsageFault: it is a file, or holds something we did not write and ``overwrite`` is false.
        EnvironmentFault: nothing can be written there.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageFault("this is a file, not a directory", fix="choose another output directory", where=str(directory))
    occupied = directory.is_dir() and any(directory.iterdir()) and not (directory / RECORD_FILE).is_file()
    if occupied and not overwrite:
        raise UsageFault(
            "the output directory is not empty, and it is not a model that safeguard wrote",
            fix="choose another directory, or ask for it to be overwritten",
            where=str(directory),
        )
    check_writable(directory)


def _check_names(extra: Mapping[str, str], pipeline: DiffusionPipeline) -> None:
    for name in extra:
        if name != Path(name).name or name in ("model_index.json", "", "..", *pipeline.components):
            raise UsageFault(f"{name!r} cannot be the name of a file beside the model", fix="use a plain file name")


def _check_weights(modules: Mapping[str, torch.nn.Module]) -> None:
    for component, module in modules.items():
        for name, value in module.state_dict().items():
            if not torch.isfinite(value).all():
                raise TrainingFault(
                    f"{component}.{name} holds NaN or infinite values, so nothing was written",
                    fix="lower the learning rate, or train in float32",
                )


def _check_folded(pipeline: DiffusionPipeline) -> None:
    if any(eraser.activation == "linear" for eraser in erasers(pipeline.unet).values()):
        raise UsageFault("the model holds linear erasers", fix="fold them first: safeguard.diffusion.erasers.fold")


def _check_space(directory: Path, modules: Mapping[str, torch.nn.Module]) -> None:
    """The new directory must fit beside the old one, which is removed last."""
    tensors = [value for module in modules.values() for value in module.state_dict().values()]
    needed = sum(value.numel() * value.element_size() for value in tensors) + OVERHEAD
    existing = nearest(directory.absolute())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise EnvironmentFault(
            f"the model needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            fix="free disk space or choose another output directory",
            where=str(existing),
        )


def _reset_tokenizers(pipeline: DiffusionPipeline) -> None:
    """A tokenizer saves the padding and truncation of its last call; the same model would get two digests."""
    for name, part in pipeline.components.items():
        if name.startswith("tokenizer") and part is not None:
            part.backend_tokenizer.no_padding()
            part.backend_tokenizer.no_truncation()


def _forget_origin(path: Path) -> None:
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config, dict) and any(key in config for key in _LOCAL_SETTINGS):
        kept = {key: value for key, value in config.items() if key not in _LOCAL_SETTINGS}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
