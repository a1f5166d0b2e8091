"""What may lie in a model directory: every file of it is looked at, whether a pipeline would load it or not.

Refused are code, pickles and archives by their type, links that leave the directory, settings that fetch code or
packages, shard indices that point elsewhere, broken safetensors and JSON, and directories of absurd size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safeguard.errors import ModelFault
from safeguard.files import in_hub_cache
from safeguard.io.formats import load_json, read_header

MAX_FILES = 10_000
MAX_BYTES = 200 * 10**9
MAX_DEPTH = 16

FORBIDDEN_SUFFIXES = {
    # code
    ".py", ".pyc", ".pyd", ".pyo", ".pyw", ".pyx", ".so", ".dll", ".dylib", ".sh", ".exe", ".bat", ".jar", ".wasm",
    # pickles, or what may hold one
    ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".pkl", ".pickle", ".dill", ".joblib", ".msgpack", ".npy", ".npz", ".mar",
    # weights in formats that are not opened here
    ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".onnx", ".onnx_data", ".gguf", ".ggml", ".dduf",
    # archives
    ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl", ".egg",
}  # fmt: skip
FORBIDDEN_NAMES = {"adapter_config.json", "modular_model_index.json", "modular_config.json"}
"""They name other repositories, from which weights or code would be loaded."""
FORBIDDEN_SETTINGS = {
    # code beside the weights, or on a hub
    "auto_map", "custom_pipeline", "_custom_pipeline", "custom_pipelines", "custom_revision", "custom_code",
    "custom_generate", "trust_remote_code", "module_path", "_blocks_class_name", "_load_connected_pipes",
    # may name kernels on a hub
    "use_kernels", "kernel_config", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
    # imports the package it names
    "quantization_config",
}  # fmt: skip

HELP = "use a model whose directory holds safetensors weights and JSON only, from a source you trust"

_TIDY = "keep in the directory only what belongs to the model"
_AGAIN = "fetch the model again, completely"


def refuse(what: str, path: Path, fix: str) -> ModelFault:
    """The error for something in a model directory that is not accepted; the fix must fit it."""
    return ModelFault(what, fix=fix, where=str(path))


def check_contents(directory: Path) -> None:
    """Look at every file of a directory.

    Raises:
        ModelFault: one of them is refused.
        OSError: one of them cannot be read.
    """
    for path in _walk(directory):
        suffix = path.suffix.lower()
        if suffix in FORBIDDEN_SUFFIXES:
            advice = f"delete it if nothing needs it; otherwise {HELP}"
            raise refuse(
                f"a file of type {suffix} may run code when it is loaded, so the directory is refused", path, advice
            )
        if path.name.lower() in FORBIDDEN_NAMES:
            raise refuse(
                "adapters and modular pipelines load from other repositories and are refused",
                path,
                "merge the adapter into the weights, save the pipeline as a whole, and delete this file",
            )
        if suffix == ".safetensors":
            read_header(path)
        if suffix == ".json":
            _check_json(path)


def _walk(directory: Path) -> Iterator[Path]:
    """All files below, each one regular or a link to a regular one that may be followed."""
    total = count = 0
    pending = [(directory, 0)]
    while pending:
        folder, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise refuse(f"folders are nested more than {MAX_DEPTH} deep", folder, _TIDY)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if not entry.name.isprintable() or "\\" in entry.name:
                raise refuse(f"the file name {entry.name!r} is not portable", folder, "rename it")
            if entry.is_dir(follow_symlinks=False):
                pending.append((path, depth + 1))
                continue
            _check_file(directory, path, entry.is_symlink())
            count, total = count + 1, total + entry.stat().st_size
            if count > MAX_FILES or total > MAX_BYTES:
                raise refuse(f"more than {MAX_FILES} files or {MAX_BYTES // 10**9} GB", directory, _TIDY)
            yield path


def _check_file(directory: Path, path: Path, link: bool) -> None:
    """Links stay inside, or lead from a snapshot of a Hugging Face cache to a blob of the same repository."""
    root, target = Path(os.path.realpath(directory)), Path(os.path.realpath(path))
    blob = in_hub_cache(root) and target.parent == root.parent.parent / "blobs"
    if link and not (blob or target.is_relative_to(root)):
        raise refuse(
            f"a link that leaves the directory, to {os.readlink(path)!r}", path, "replace it by the file itself"
        )
    if not (target.exists() and stat.S_ISREG(target.stat().st_mode)):
        raise refuse("neither a file nor a link to a file", path, "delete it, or replace it by the file itself")


def _check_json(path: Path) -> None:
    value = load_json(path)
    for key, found in _settings(value):
        if key in FORBIDDEN_SETTINGS and found not in (None, False, "eager", "sdpa"):
            raise refuse(
                f"the setting {key!r} asks for code or packages from elsewhere and is refused",
                path,
                f"delete the setting if the model works without; otherwise {HELP}",
            )
    if path.name.endswith(".index.json"):
        _check_shards(path, value)


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested JSON."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Mapping):
            yield from item.items()
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _check_shards(path: Path, index: Any) -> None:
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise refuse("a shard index without weight_map", path, _AGAIN)
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise refuse(
                f"weight_map sends {tensor!r} to {shard!r}, which is not a safetensors file beside it", path, HELP
            )
    for shard in sorted(set(shards.values())):
        if not (path.parent / shard).is_file():
            raise refuse(f"the shard {shard!r} is missing", path, _AGAIN)
