"""Calibration records that a policy's detectors name: read from beside the policy's file, and from then on part of it.

So a policy says by itself what its detectors' errors are: its digest covers them, and it can be moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeguard.policy.reading import FieldPath
from safeguard.policy.validation import Problem
from safeguard.results.measured import MAX_BYTES


def read_records(data: Any, folder: Path) -> list[Problem]:
    """Put the content of every file that a detector in ``data`` names as its calibration in the name's place.

    Args:
        data: a policy, or a detector, as read; it is changed.
        folder: what the files' names are relative to.

    Returns:
        What is wrong with them.
    """
    problems = []
    for path, detector in _detectors(data):
        named = detector.get("calibration")
        if isinstance(named, str):
            try:
                detector["calibration"] = _read(folder / named)
            except (OSError, ValueError, RecursionError) as error:
                what = f"{named}: {error}; `safeguard calibrate` writes such files"
                problems.append(Problem((*path, "calibration"), what))
    return problems


def _read(file: Path) -> Any:
    if not file.is_file():
        raise ValueError("there is no such file beside the policy")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError("the file is too large for a calibration")
    return json.loads(file.read_bytes())


def _detectors(data: Any) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    if not isinstance(data, dict):
        return
    if "calibration" in data:
        yield (), data
    concepts = data.get("concepts")
    for place, concept in enumerate(concepts if isinstance(concepts, list) else []):
        if isinstance(concept, dict) and isinstance(concept.get("detector"), dict):
            yield ("concepts", place, "detector"), concept["detector"]
    utility = data.get("utility")
    if isinstance(utility, dict) and isinstance(utility.get("detector"), dict):
        yield ("utility", "detector"), utility["detector"]
