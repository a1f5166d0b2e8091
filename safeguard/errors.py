"""Everything that can go wrong for a user, with one exit code per kind.

``0`` PASS · ``1`` FAIL · ``2`` usage, invalid policy, rejected model directory · ``3`` INCONCLUSIVE · ``4`` error
(crash, out of memory, disk full, unreachable hub) · ``130`` interrupted, resumable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SafeguardError(Exception):
    """Root of all errors a user may see.

    Args:
        what: what is wrong, in one sentence.
        fix: what to do about it.
        where: file, line, field or directory the error is about.
    """

    exit_code = 4

    def __init__(self, what: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  → {self.fix}" if self.fix else ""
        return f"{place}{self.what}{advice}"


class UsageFault(SafeguardError):
    """A command or an API call that cannot mean anything: unknown name, contradictory options."""

    exit_code = 2


class PolicyFault(SafeguardError):
    """A policy or suite file that does not parse or does not validate."""

    exit_code = 2


class ModelFault(SafeguardError):
    """A model directory that is refused, or cannot be opened, or is not what it claims to be."""

    exit_code = 2


class EnvironmentFault(SafeguardError):
    """The machine cannot do it: no such device, no disk space, no network, a missing package."""

    exit_code = 4


class TrainingFault(SafeguardError):
    """A run that produced an unusable model (NaN weights, noise, blank images); nothing was written."""

    exit_code = 4


@contextmanager
def located(where: str) -> Iterator[None]:
    """What goes wrong inside is about this place, unless it names a closer one."""
    try:
        yield
    except SafeguardError as error:
        error.where = error.where or where
        raise
