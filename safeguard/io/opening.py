"""From a name to a pipeline in memory: find the directory, check it, load it, and notice if it changed meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeguard.errors import EnvironmentFault, ModelFault, SafeguardError, UsageFault
from safeguard.io.manifest import difference, manifest
from safeguard.io.preflight import ModelInfo, check_finite, inspect

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"  # diffusers reads it once, when it is imported

WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
"""What is downloaded from a hub: the pipeline's folders, not the single-file checkpoints beside them."""
UNWANTED = ["*/*.*.safetensors", "*/*.*.index.json", "safety_checker/*", "*flax*", "*openvino*"]
"""And not their variants (``.fp16.``, ``.non_ema.``)."""
DTYPES = ("float32", "float16", "bfloat16")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


# -- finding --------------------------------------------------------------------------------------------------------


def resolve(spec: str, revision: str | None = None, *, offline: bool) -> Path:
    """The directory a model is in, downloaded first if need be; nothing of it is checked or loaded yet.

    Args:
        spec: ``reference`` (the embedded model), a local directory, or a hub id ``owner/name``.
        revision: commit, tag or branch of a hub model.
        offline: use a hub model only if it was downloaded before.

    Raises:
        ModelFault: there is no such directory, hub model or revision, or access to it was not granted.
        EnvironmentFault: the hub cannot be reached, or offline and never downloaded, or the disk is full.
        UsageFault: a revision of something that has none.
    """
    local = Path(spec).expanduser()
    if spec != "reference" and not local.is_dir() and _HUB_ID.fullmatch(spec):
        return _download(spec, revision, offline)
    if revision is not None:
        raise UsageFault(f"{spec} is not a hub model and has no revision", fix="leave the revision out")
    if spec == "reference":
        from safeguard import reference

        return reference.path()
    if not spec or not local.is_dir():
        raise ModelFault(
            "there is no such directory",
            fix="give 'reference', an existing directory, or a hub id owner/name",
            where=spec,
        )
    return local


def _download(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # each of its five tries would be a warning; what came of them is one message, ours
    try:
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=offline, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except GatedRepoError as error:
        advice = "accept its terms on its page, then log in with 'hf auth login'"
        raise ModelFault("access to this model is not granted", fix=advice, where=name) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        advice = "check the spelling; for a private model log in with 'hf auth login'"
        raise ModelFault("the hub has no such model", fix=advice, where=name) from error
    except RevisionNotFoundError as error:
        raise ModelFault(f"the model has no revision {revision!r}", fix="check its history", where=name) from error
    except LocalEntryNotFoundError as error:
        what = "not downloaded yet, and this is offline" if offline else "the hub cannot be reached"
        advice = "run once with network access, or give the path of a local copy"
        raise EnvironmentFault(what, fix=advice, where=name) from error
    except Exception as error:  # HTTP, TLS, transfer and disk errors have no common root
        advice = "check network and disk space, or give the path of a local copy"
        raise EnvironmentFault(f"the download failed: {error}", fix=advice, where=name) from error
    finally:
        logging.set_verbosity(verbosity)


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


def open_pipeline(directory: Path, *, device: str = "cpu", dtype: str = "float32") -> DiffusionPipeline:
    """A checked Stable Diffusion pipeline in memory: evaluation mode, no gradients, no safety checker, no progress bar.

    The directory is hashed before and after: what was checked is what was loaded. The weights are copied out of the
    files, which could otherwise be changed later under a running model.

    Args:
        directory: a local diffusers directory.
        device: as PyTorch names it; see :func:`pick_device`.
        dtype: ``float32``, ``float16`` or ``bfloat16``, whatever is stored.

    Raises:
        ModelFault: the directory is refused, incomplete, or changed while it was opened.
        UsageFault: unknown dtype.
    """
    if dtype not in DTYPES:
        raise UsageFault(f"unknown dtype {dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    inspect(directory)  # a quick answer before gigabytes are hashed
    before = manifest(directory)
    info = inspect(directory)  # again: only what was hashed counts
    check_finite(directory)
    pipeline = _load(directory, info, dtype)
    changes = difference(before, manifest(directory))
    if changes:
        raise ModelFault(
            f"the directory changed while it was opened ({changes[0]})",
            fix="let nothing write to a model that is being opened, then try again",
            where=str(directory),
        )
    return pipeline.to(device)


def _load(directory: Path, info: ModelInfo, dtype: str) -> DiffusionPipeline:
    import diffusers
    import torch
    import transformers

    from safeguard.diffusion.erasers import load as load_erasers

    quiet()
    libraries = {"text_encoder": transformers, "text_encoder_2": transformers, "unet": diffusers, "vae": diffusers}
    is_xl = info.architecture == "sdxl"
    options = {"add_watermarker": False} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    with no_network(), _explained(directory):
        modules = {
            name: _load_module(getattr(library, info.components[name]), directory / name, getattr(torch, dtype))
            for name, library in libraries.items()
            if name in info.components
        }
        pipeline: DiffusionPipeline = getattr(diffusers, info.pipeline).from_pretrained(
            directory, local_files_only=True, feature_extractor=None, image_encoder=None, **modules, **options
        )
        load_erasers(pipeline.unet, directory / "unet", info.erasers)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_module(kind: Any, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """One module with all of its weights; the libraries would fill missing ones with random numbers and a warning."""
    with _explained(folder):
        module, loaded = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    missing = sorted(loaded["missing_keys"])
    if missing:
        what = f"{len(missing)} of its weights are missing, the first is {missing[0]!r}"
        raise ModelFault(what, fix="fetch the model again, completely", where=str(folder))
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()  # until now a view of the file
    result: torch.nn.Module = module.requires_grad_(False).eval()
    return result


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafeguardError, MemoryError):
        raise
    except Exception as error:  # what the libraries raise for a broken model has no common root
        raise ModelFault(
            f"cannot be loaded: {_one_line(error)}",
            fix="its files do not fit each other: fetch the model again, or convert it again",
            where=str(folder),
        ) from error


def _one_line(error: Exception) -> str:
    """The first line of a library's message, which may quote the model: nothing in it may steer a terminal."""
    line = next(iter(str(error).splitlines()), repr(error))
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def quiet() -> None:
    """Switch off the progress bars of diffusers and transformers; progress is shown in one place, ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def no_network() -> Iterator[None]:
    """Whatever a library does meanwhile, its requests to a hub fail before they leave."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
