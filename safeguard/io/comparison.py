"""Which components of two model directories differ, read from their files without building a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from safeguard.diffusion.model import PARTS

_COUNTERS = ("position_ids",)
"""Buffers that older files hold and newer ones leave out; they count positions and carry nothing."""


def _tensors(folder: Path) -> dict[str, Path]:
    """Name of every tensor of a component, and the file it is in."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            names = [name for name in handle.keys() if not name.endswith(_COUNTERS)]  # noqa: SIM118 - safe_open is no mapping
        found |= dict.fromkeys(names, path)
    return found


def _read(names: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(names[name], framework="pt") as handle:
        value: torch.Tensor = handle.get_tensor(name)
    return value


def _differs(ours: Path, theirs: Path) -> bool:
    here, there = _tensors(ours), _tensors(theirs)
    return here.keys() != there.keys() or any(_values_differ(here, there))


def _values_differ(here: dict[str, Path], there: dict[str, Path]) -> Iterator[bool]:
    for name in here:
        ours, theirs = _read(here, name), _read(there, name)
        yield ours.shape != theirs.shape or not torch.equal(ours.float(), theirs.float())


def differing_parts(directory: Path, base: Path) -> frozenset[str]:
    """Those of :data:`safeguard.diffusion.model.PARTS` whose stored weights are not those of the base, as numbers.

    Both directories passed the pre-flight.
    """
    there = [part for part in PARTS if (directory / part).is_dir()]
    return frozenset(part for part in there if _differs(directory / part, base / part))
