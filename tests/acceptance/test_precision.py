"""Drawing in half precision moves pixels, and no rate: what the detector says stays what it was."""

from __future__ import annotations

import numpy as np
import pytest

from safeguard import reference
from safeguard.attack.base import Attempt
from safeguard.diffusion.model import DiffusionModel
from safeguard.io.opening import open_pipeline
from safeguard.policy.loading import load_policy
from safeguard.policy.schema import Policy
from safeguard.probe.evaluator import Evaluator
from safeguard.resources import find_resource


@pytest.mark.acceptance
def test_flags_agree_on_the_reference_model() -> None:
    model = DiffusionModel(open_pipeline(reference.path()))
    shipped = load_policy(find_resource("policy", "policies", "quickstart"))
    rows = {}
    for precision in ("float32", "bfloat16"):
        settings = shipped.certification.model_dump() | {"precision": precision, "samples": 96}
        policy = Policy.model_validate(shipped.model_dump() | {"certification": settings})
        look = Evaluator(policy, "cpu", "00" * 16).look(model, Attempt(0), seed=0, everything=True)
        rows[precision] = look.rows
    whole, half = rows["float32"], rows["bfloat16"]
    assert [(row.subject, row.seed) for row in whole] == [(row.subject, row.seed) for row in half]
    assert [row.score for row in whole] != [row.score for row in half]
    agree = np.array([a.flagged == b.flagged for a, b in zip(whole, half, strict=True)])
    assert agree.mean() >= 0.98
    for subject in {row.subject for row in whole}:
        counts = [sum(row.flagged for row in found if row.subject == subject) for found in (whole, half)]
        assert abs(counts[0] - counts[1]) <= 2, subject
