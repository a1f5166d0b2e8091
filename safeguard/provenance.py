"""Where a result comes from: the code and the libraries that made it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from safeguard import __version__
from safeguard.registry import ALL


def environment() -> dict[str, str]:
    """Versions that may change a result in the last digits."""
    import diffusers
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "safeguard": __version__,
    }


def code_revision() -> str | None:
    """Commit of the checkout the package runs from, with a mark when it has local changes; None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


LIBRARIES = (
    "accelerate",
    "onnxruntime",
    "timm",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "numpy",
    "open_clip_torch",
    "nudenet",
    "optuna",
    "pillow",
    "tokenizers",
)
"""Packages whose version may change what a unit finds."""
DECLARATIONS = (
    "policy/contradictions.py", "policy/json_schema.py", "policy/loading.py", "policy/methods.py", "policy/places.py",
    "policy/reading.py", "policy/study.py", "policy/template.py", "policy/validation.py",
)  # fmt: skip
"""How policies are read and checked; what they mean, prompts and anchors included, stands beside it and counts."""
OF_NO_UNIT = (
    "api.py", "certification", "certify", "cli", "harden", "progress.py", "report", "resilience", "results", "study",
    "unlearn", "wording.py", *DECLARATIONS,
)  # fmt: skip
"""Parts of the package that no unit's outcome depends on: they compose, judge counts, or render."""


@cache
def code_digest(without: tuple[str, ...] = ()) -> str:
    """sha256 over the sources of this package, other packages' methods, and the versions of the libraries.

    Args:
        without: files and folders of the package that do not matter, such as :data:`OF_NO_UNIT`.
    """
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {name.as_posix(), name.parts[0]} & set(without):
            digest.update(f"{name.as_posix()}\x00".encode() + path.read_bytes() + b"\x00")
    for found in ALL:
        for point in found.foreign():
            digest.update(f"{point.group} {point.name} {point.value}\x00".encode() + _source(point) + b"\x00")
    for library in LIBRARIES:
        try:
            digest.update(f"{library} {version(library)}\x00".encode())
        except PackageNotFoundError:
            digest.update(f"{library}\x00".encode())
    return digest.hexdigest()


def _source(point: EntryPoint) -> bytes:
    """Version and source of another package's method."""
    known = f"{point.dist.name} {point.dist.version}" if point.dist else ""
    spec = find_spec(point.module)
    source = Path(spec.origin).read_bytes() if spec and spec.origin and Path(spec.origin).is_file() else b""
    return known.encode() + b"\x00" + source
