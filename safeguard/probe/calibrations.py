"""What is known of a policy's detectors before anything is judged: their calibrations, for planning."""

from __future__ import annotations

from safeguard.detect.measuring import known_errors, make
from safeguard.errors import EnvironmentFault
from safeguard.policy.schema import Policy
from safeguard.results.calibration import Calibration


def calibrations(policy: Policy) -> tuple[dict[str, Calibration | None], list[str]]:
    """Calibration records by concept, and which detectors cannot be opened here, and why.

    A plan is made before anything is fetched, so a detector that is not there yet is no error. It is said.
    """
    found: dict[str, Calibration | None] = {}
    absent = []
    for concept in policy.concepts:
        try:
            found[concept.name] = known_errors(make(concept.detector), concept.labels)
        except EnvironmentFault as fault:
            found[concept.name] = None
            absent.append(f"{concept.name}: the detector is not here yet, so its errors are left out ({fault.what})")
    return found, absent
