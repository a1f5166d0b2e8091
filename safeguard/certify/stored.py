"""The units that a report rests on, read from its run directory, and the verdict computed from them again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safeguard.certify.assessment import assess
from safeguard.certify.basis import evidence_of
from safeguard.certify.consistency import ROUNDING
from safeguard.errors import SafeguardError
from safeguard.results.report import Report
from safeguard.results.unit import UNIT_FILE, UnitResult

_BINDING = {"planned", "run", "integrity", "basis"}
"""What a certification adds to what :func:`assess` gives."""


@dataclass(frozen=True)
class Stored:
    """Units as they lie in the run directory.

    Attributes:
        units: those that can be read, in the order of the report.
        problems: what is missing, damaged or not what was judged, in words.
        missing: how many are not there.
    """

    units: list[UnitResult]
    problems: list[str]
    missing: int


def stored_units(report: Report, run_dir: Path) -> Stored:
    """The units that a report names, compared with the digests it has of them."""
    units: list[UnitResult] = []
    problems: list[str] = []
    missing = 0
    for named in report.run:
        name = f"units/{named.address}/{UNIT_FILE}"
        try:
            content = (run_dir / name).read_bytes()
        except OSError as error:
            missing += 1
            problems.append(f"{name} cannot be read: {error.strerror}")
            continue
        if hashlib.sha256(content).hexdigest() != named.digest:
            problems.append(f"{name} is not the file that was judged")
        try:
            units.append(UnitResult.model_validate_json(content))
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
            problems.append(f"{name} is no unit: {field}: {error.errors()[0]['msg']}")
    return Stored(units, problems, missing)


def recomputed(report: Report, units: list[UnitResult]) -> list[str]:
    """Where the report differs from what follows from these units and its own basis, in words."""
    try:
        again = assess(evidence_of(report, units))
    except SafeguardError as error:
        return [f"nothing can be computed from it: {error.what}"]
    was, now = (each.model_dump(mode="python", exclude=_BINDING) for each in (report, again))
    return list(_differences("", was, now))


def _differences(where: str, was: Any, now: Any) -> Iterator[str]:
    """Fields that differ, numbers by more than rounding."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(f"{where}.{key}".lstrip("."), was.get(key), now.get(key))
    elif isinstance(was, list | tuple) and isinstance(now, list | tuple) and len(was) == len(now):
        for place, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _differences(f"{where}[{place}]", one, other)
    elif not _same(was, now):
        yield f"{where} is {_short(was)}, computed again it is {_short(now)}"


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, float) and isinstance(now, float):
        return math.isclose(was, now, rel_tol=ROUNDING, abs_tol=ROUNDING) or (math.isnan(was) and math.isnan(now))
    return bool(was == now)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
