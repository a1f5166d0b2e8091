"""Training state on disk: safetensors only, written atomically, so that a killed run continues where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from safeguard.errors import ModelFault
from safeguard.files import atomic_path, check_writable


def _portable(value: Any) -> torch.Tensor:
    # a copy: safetensors refuses tensors that share memory, and tied weights or views do
    return torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)


@contextmanager
def held(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """The training state is this process's until the end of the block, or of the process.

    Args:
        waiting: called when another process has it, before this one waits.

    Raises:
        EnvironmentFault: nothing can be written there.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def save_state(
    path: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write named groups of tensors, optimizer moments and JSON facts into one safetensors file.

    Args:
        path: the file; it is replaced atomically.
        tensors: group -> name -> tensor; a group's name has no slash.
        optimizers: name -> optimizer, whose moments (not its settings) are kept.
        facts: anything that JSON can hold: steps done, losses, the digest of what is being trained.

    Raises:
        EnvironmentFault: the file cannot be written; the old one is untouched.
    """
    flat = {f"{group}/{key}": _portable(value) for group, state in tensors.items() for key, value in state.items()}
    for name, optimizer in (optimizers or {}).items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                flat[f"optimizer:{name}/{index}/{key}"] = _portable(value)
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"facts": json.dumps(dict(facts or {}))})


def load_state(
    path: Path, optimizers: Mapping[str, torch.optim.Optimizer] | None = None
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The inverse of :func:`save_state`: tensor groups and facts; moments go into the given optimizers.

    Raises:
        ModelFault: there is no such file, or it is not one that :func:`save_state` wrote.
    """
    groups, facts = _read(path)
    for name, optimizer in (optimizers or {}).items():
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in groups.pop(f"optimizer:{name}", {}).items():
            index, field = key.split("/")
            moments.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return groups, facts


def _read(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    groups: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as handle:
            facts: dict[str, Any] = json.loads((handle.metadata() or {})["facts"])
            for key in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                group, name = key.split("/", 1)
                groups.setdefault(group, {})[name] = handle.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelFault(
            f"not a training state ({error})", fix="delete it to start again from the beginning", where=str(path)
        ) from error
    return groups, facts
