"""From a directory to a pipeline in memory: check it, read its weights once, and notice if it changed meanwhile."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeguard.errors import EnvironmentFault, ModelFault, SafeguardError, UsageFault
from safeguard.io.hub import no_network
from safeguard.io.manifest import Snapshot, difference, model_digest
from safeguard.io.preflight import ModelInfo, inspect

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from safeguard.io.weights import WeightReader

os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"  # diffusers reads it once, when it is imported

DTYPES = ("float32", "float16", "bfloat16")
_AGAIN = "its files do not fit each other: fetch the model again, or convert it again"


def pick_device(name: str) -> str:
    """The device to compute on: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        EnvironmentFault: CUDA is asked for and not there; what is there is named.
        UsageFault: no such kind of device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageFault(f"unknown device {name!r}", fix="use auto, cpu, cuda, or cuda: and a number")
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if int(name.partition(":")[2] or 0) >= count:
        present = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        reason = "" if count or torch.version.cuda else "; this PyTorch is built without CUDA"
        raise EnvironmentFault(
            f"there is no {name} here; there is cpu{', ' + present if present else ''}{reason}",
            fix="use --device cpu or auto, or install a driver and a CUDA build of PyTorch",
        )
    return name


# -- opening --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedModel:
    """A checked directory in memory.

    Attributes:
        pipeline: evaluation mode, no gradients, no safety checker, no progress bar.
        directory: where it is from.
        files: relative path of every file -> SHA-256; of weights, that of the bytes which are in the pipeline.
        digest: what identifies the model (:func:`safeguard.io.manifest.model_digest`).
        stored: type of every tensor on disk, by names such as ``unet.conv_in.weight``.
    """

    pipeline: DiffusionPipeline
    directory: Path
    files: dict[str, str]
    digest: str
    stored: dict[str, torch.dtype]


def open_pipeline(directory: Path, *, device: str = "cpu", dtype: str = "float32") -> DiffusionPipeline:
    """The pipeline alone of :func:`open_directory`."""
    return open_directory(directory, device=device, dtype=dtype).pipeline


def open_directory(directory: Path, *, device: str = "cpu", dtype: str = "float32") -> OpenedModel:
    """A checked Stable Diffusion pipeline in memory, and the digests of what is in it.

    Weights are read once: the bytes that are loaded are those that are checked and hashed. Everything else is hashed
    before and after, so what was checked is what was loaded.

    Args:
        directory: a local diffusers directory.
        device: as PyTorch names it; see :func:`pick_device`.
        dtype: ``float32``, ``float16`` or ``bfloat16``, whatever is stored.

    Raises:
        ModelFault: the directory is refused, incomplete, or changed while it was opened.
        UsageFault: unknown dtype.
    """
    from safeguard.io.weights import WeightReader  # not at the top: it imports torch

    if dtype not in DTYPES:
        raise UsageFault(f"unknown dtype {dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    inspect(directory)  # a quick answer before anything is hashed
    before = Snapshot.of(directory)
    info = inspect(directory)  # again: only what was hashed counts
    reader = WeightReader(directory)
    pipeline, stored = _load(directory, info, dtype, reader)
    reader.rest()
    changes = difference(before.marks, Snapshot.of(directory).marks)
    if changes:
        raise ModelFault(
            f"the directory changed while it was opened ({changes[0]})",
            fix="let nothing write to a model that is being opened, then try again",
            where=str(directory),
        )
    files = before.manifest(reader.digests)
    return OpenedModel(pipeline.to(device), directory, files, model_digest(directory, files), stored)


def open_component(directory: Path, name: str) -> Any:
    """One component of a directory, as :func:`open_directory` would give it, in main memory and float32.

    Raises:
        ModelFault: the directory is refused, or the component cannot be opened.
    """
    import torch

    from safeguard.io.weights import WeightReader

    info = inspect(directory)
    quiet()
    with no_network(), explained(directory):
        if name.startswith(("tokenizer", "scheduler")):
            return small_parts(directory, info)[name]
        weights = WeightReader(directory).component(name)
        return _load_module(directory / name, info.components[name], weights, torch.float32)


def _load(
    directory: Path, info: ModelInfo, dtype: str, reader: WeightReader
) -> tuple[DiffusionPipeline, dict[str, torch.dtype]]:
    """The pipeline, and the type each of its tensors is stored in."""
    import torch

    from safeguard.diffusion.erasers import load as load_erasers

    quiet()
    modules: dict[str, Any] = {}
    stored: dict[str, torch.dtype] = {}
    with no_network(), explained(directory):
        modules |= small_parts(directory, info)
        for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
            if name not in info.components:
                continue
            weights = reader.component(name)
            modules[name] = _load_module(directory / name, info.components[name], weights, getattr(torch, dtype))
            if name == "unet":
                load_erasers(modules[name], weights, info.erasers)
            stored |= {f"{name}.{key}": kind for key, kind in _stored_types(modules[name], weights).items()}
        pipeline = assemble(directory, info, modules)
    return pipeline, stored


def assemble(directory: Path, info: ModelInfo, modules: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline of a directory, made of components that are there already."""
    import diffusers

    is_xl = info.architecture == "sdxl"
    options = {"add_watermarker": False} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    pipeline: DiffusionPipeline = getattr(diffusers, info.pipeline).from_pretrained(
        directory, local_files_only=True, feature_extractor=None, image_encoder=None, **modules, **options
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_parts(directory: Path, info: ModelInfo) -> dict[str, Any]:
    """Tokenizers and scheduler, which must fit what comes: gigabytes are read after them."""
    import diffusers
    import transformers

    from safeguard.io.fitting import CORRECT_SCHEDULE, SCHEDULE_FILE, check_scheduler, check_tokenizer

    found: dict[str, Any] = {}
    for name in (name for name in info.components if name.startswith("tokenizer")):
        folder, encoder = directory / name, directory / name.replace("tokenizer", "text_encoder")
        with explained(folder):
            found[name] = getattr(transformers, info.components[name]).from_pretrained(folder, local_files_only=True)
            config = transformers.CLIPTextConfig.from_pretrained(encoder, local_files_only=True)
            check_tokenizer(found[name], config, folder)
    folder = directory / "scheduler"
    with explained(folder / SCHEDULE_FILE, CORRECT_SCHEDULE):
        found["scheduler"] = getattr(diffusers, info.components["scheduler"]).from_pretrained(
            folder, local_files_only=True
        )
        check_scheduler(found["scheduler"], info.channels, folder)
    return found


def _load_module(folder: Path, kind: str, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """One module with all of its weights; the libraries would fill missing ones with random numbers and a warning."""
    build = _transformers_module if folder.name.startswith("text_encoder") else _diffusers_module
    with explained(folder):
        module, missing = build(folder, kind, weights, dtype)
    if missing:
        what = f"{len(missing)} of its weights are missing, the first is {min(missing)!r}"
        raise ModelFault(what, fix="fetch the model again, completely", where=str(folder))
    return module.requires_grad_(False).eval()


def _transformers_module(
    folder: Path, kind: str, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.nn.Module, set[str]]:
    import transformers

    model_class = getattr(transformers, kind)
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    module, loaded = model_class.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=dtype, output_loading_info=True
    )
    return module, set(loaded["missing_keys"])


def _diffusers_module(
    folder: Path, kind: str, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.nn.Module, set[str]]:
    import diffusers
    from accelerate import init_empty_weights

    model_class = getattr(diffusers, kind)
    with init_empty_weights():
        module = model_class.from_config(model_class.load_config(folder, local_files_only=True))
    weights = module._fix_state_dict_keys_on_load(dict(weights))  # autoencoders of before 2023 name their attention so
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    loaded = module.load_state_dict(weights, strict=False, assign=True)
    return module, set(loaded.missing_keys)


def _stored_types(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
    """The type every tensor of a module is stored in; one that was stored under an old name has the commonest."""
    types = {name: value.dtype for name, value in weights.items()}
    floating = Counter(dtype for dtype in types.values() if dtype.is_floating_point)
    usual = floating.most_common(1)[0][0] if floating else None
    found = {}
    for name, value in module.state_dict().items():
        known = types.get(name) or types.get(f"text_model.{name}") or usual
        if known is not None and value.is_floating_point():
            found[name] = known
    return found


@contextmanager
def explained(place: Path, fix: str = _AGAIN) -> Iterator[None]:
    """What a library raises inside is about this place, and a fault of the model."""
    try:
        yield
    except (SafeguardError, MemoryError):
        raise
    except Exception as error:  # what the libraries raise for a broken model has no common root
        raise ModelFault(
            f"cannot be loaded: {_one_line(error)}",
            fix=fix,
            where=str(place),
        ) from error


def _one_line(error: Exception) -> str:
    """A library's message on one line; it may quote the model: nothing in it may steer a terminal."""
    line = " ".join(str(error).split())[:500] or repr(error)
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def quiet() -> None:
    """Switch off the progress bars of diffusers and transformers; progress is shown in one place, ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
