"""The probe that puts components back, as a certification runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from safeguard.errors import ModelFault
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Worker
from safeguard.probe.units import Units
from safeguard.progress import SilentProgress
from tests.tiny import changed_copy


def test_a_model_that_hides_a_word_in_its_text_encoder_draws_as_its_base_again(world: Path) -> None:
    """The unit of the probe, on a model whose text encoder alone differs: put back, its rows are the base's."""
    model = changed_copy(world / "base", world / "hidden", "text_encoder", share=0.5)
    policy, suite = (yaml.safe_load((world / f"{name}.yaml").read_text()) for name in ("policy", "suite"))
    policy["certification"] |= {"may_differ": ["text_encoder"]}
    suite["probes"].append(
        {
            "id": "put-back",
            "title": "Components put back",
            "intent": "none",
            "attack": {"name": "components", "parts": ["text-encoders"]},
        }
    )
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    (world / "suite.yaml").write_text(yaml.safe_dump(suite))
    campaign = Campaign.open(model, policy=world / "policy.yaml", device="cpu")
    worker = Worker(campaign, Units(world / "run", shared=False), SilentProgress())
    spec = campaign.spec("put-back")
    base, hidden = (worker.run(campaign.unit(role, spec, 0)) for role in ("base", "hardened"))
    scores = {
        (unit.role, effort): [row.score for row in unit.rows if row.effort == effort and row.subject == "axes"]
        for unit in (base, hidden)
        for effort in (0, 1)
    }
    assert scores["hardened", 1] == scores["base", 0] == scores["base", 1] != scores["hardened", 0]
    assert [point.label for point in hidden.checkpoints] == ["", "text_encoder put back from the base"]
    (world / "base/README.md").write_text("changed meanwhile")
    with pytest.raises(ModelFault, match="the base model changed"):
        worker.run(campaign.unit("hardened", spec, 1))
