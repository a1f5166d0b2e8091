"""What is known of a policy's detectors before anything is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safeguard.detect.measuring import Sample, make, measure
from safeguard.policy.loading import load_policy
from safeguard.probe.calibrations import calibrations


def test_a_plan_knows_the_calibration_that_a_policy_carries(world: Path) -> None:
    policy = load_policy(world / "policy.yaml")
    (concept,) = policy.concepts
    assert calibrations(policy) == ({"axes": None}, [])
    images = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    sample = Sample("four of noise", images, ["axe", "axe", None, None])
    found = measure(make(concept.detector), concept.labels, [sample])
    carrying = concept.model_copy(update={"detector": concept.detector.model_copy(update={"calibration": found})})
    assert calibrations(policy.model_copy(update={"concepts": [carrying]})) == ({"axes": found.record}, [])
