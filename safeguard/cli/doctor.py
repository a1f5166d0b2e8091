"""``safeguard doctor``: is everything here that the other verbs need?"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from safeguard import __version__, compat
from safeguard.cli.common import table
from safeguard.errors import EnvironmentFault

PACKAGES = ("diffusers", "transformers", "accelerate", "peft", "safetensors", "open_clip_torch", "pydantic")
NEEDED_DISK = 4 * 2**30
"""Bytes: a Stable Diffusion 1.x in half precision, its hardened copy, and room for one checkpoint."""


class Finding(NamedTuple):
    """One line of the diagnosis."""

    what: str
    works: bool
    detail: str


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.system()}")


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding("torch", False, f"{type(error).__name__}: {error}")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return Finding("torch", True, f"{torch.__version__}, {torch.cuda.device_count()} x {', '.join(sorted(names))}")
    return Finding("torch", True, f"{torch.__version__}, CPU with {torch.get_num_threads()} threads")


def _torchvision() -> Finding:
    try:
        import torchvision
    except Exception as error:
        return Finding("torchvision", False, f"{type(error).__name__}: {error}")
    state = "its compiled operators cannot load; repaired" if compat._library is not None else "as installed"
    return Finding("torchvision", True, f"{torchvision.__version__}, {state}")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "not installed")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding("disk", free >= NEEDED_DISK, f"{free / 2**30:.1f} GiB free here")


def _reference_model() -> Finding:
    import safeguard

    weights = Path(safeguard.__file__).parent / "reference" / "weights"
    found = next(weights.rglob("model_index.json"), None)
    return Finding("reference model", found is not None, "present" if found else f"no model in {weights}")


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _torch, _torchvision, _disk, _reference_model)


@click.command()
def doctor() -> None:
    """Check that this machine can run safeguard.

    Exits with 4 when something needed is missing.
    """
    findings = [check() for check in CHECKS] + [_package(name) for name in PACKAGES]
    click.echo(f"safeguard {__version__}")
    click.echo(table(("", "state", "detail"), [(f.what, "ok" if f.works else "PROBLEM", f.detail) for f in findings]))
    broken = [finding.what for finding in findings if not finding.works]
    if broken:
        raise EnvironmentFault(f"not ready: {', '.join(broken)}", fix="see the lines marked PROBLEM")
