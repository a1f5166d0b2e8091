"""Where a result comes from: the code and the libraries that made it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from safeguard import __version__


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
