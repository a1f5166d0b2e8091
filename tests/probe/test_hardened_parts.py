"""Parts beside the denoiser's own weights: hardened, written, opened again bit by bit, attacked, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from safeguard import api
from safeguard.diffusion.model import DiffusionModel
from safeguard.io.opening import open_pipeline
from safeguard.io.preflight import inspect
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Worker
from safeguard.probe.units import Units
from safeguard.progress import SilentProgress

SHORT = {"steps": 2, "trajectory_steps": 2, "pool": 2, "learning_rate": 1e-3, "attack_steps": 2}
ADVUNLEARN = {"name": "advunlearn", "warm_up": 1, "preserve_batch": 2} | SHORT
ERASERS = {"name": "receler", "variant": "gelu", "rank": 2} | SHORT
OBJECTIVE = {"name": "resalign", "steps": 1, "harmful_loss": {"name": "ga"}, "distribution": {"steps": [2]}}


def declare(world: Path, unlearner: dict[str, Any], resilience: dict[str, Any] | None = None) -> None:
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    policy["harden"] |= {"unlearner": unlearner, "resilience": resilience or {"name": "none"}}
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))


def opened(directory: Path) -> dict[str, torch.Tensor]:
    return dict(DiffusionModel(open_pipeline(directory)).named_parameters())


def changed(world: Path) -> set[str]:
    base, hardened = opened(world / "base"), opened(world / "hardened")
    return {name for name, value in hardened.items() if name not in base or not torch.equal(value, base[name])}


@pytest.mark.parametrize("unlearner", [ADVUNLEARN, ERASERS], ids=["advunlearn", "receler"])
def test_harden_and_certify(world: Path, unlearner: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, torch.Tensor]] = []

    def save(pipeline: Any, *args: Any, **options: Any) -> dict[str, str]:
        parameters = DiffusionModel(pipeline).named_parameters()
        written.append({name: value.detach().clone() for name, value in parameters.items()})
        return save_pipeline(pipeline, *args, **options)

    save_pipeline = api.save_pipeline
    monkeypatch.setattr(api, "save_pipeline", save)
    declare(world, unlearner, OBJECTIVE)
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    again = opened(hardened.path)
    assert again.keys() == written[0].keys()
    assert all(torch.equal(value, written[0][name]) for name, value in again.items())
    erasers = unlearner["name"] == "receler"
    assert any("not hardened" in note for note in hardened.record["notes"]) == erasers
    assert bool(inspect(hardened.path).erasers) == erasers
    report = api.certify(hardened.path, out=world / "run", workers=1)
    assert report.verdict in ("FAIL", "INCONCLUSIVE"), "an untrained detector cannot certify anything"
    assert any("stored erasers" in line for line in report.limitations) == erasers
    assert {unit.name for unit in (world / "run" / "units").iterdir()}


def test_a_changed_text_encoder_is_attacked_and_put_back(world: Path) -> None:
    declare(world, ADVUNLEARN)
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    names = changed(world)
    assert names and all(name.startswith("text_encoder.") and "embeddings." not in name for name in names)
    campaign = Campaign.open(hardened.path, device="cpu")
    assert campaign.exposed_parts == {"unet", "text_encoder"}
    worker = Worker(campaign, Units(world / "run", shared=False), SilentProgress())
    assert worker.open("base").model.exposed_parts == campaign.exposed_parts, "controls are attacked like the model"
    specs = [campaign.unit("hardened", campaign.spec(probe), 0) for probe in ("malicious-full", "benign-lora")]
    for spec in specs:
        worker.draw(spec)
    target = worker.open("hardened")
    parameters = target.model.named_parameters()
    before = {name: value.clone() for name, value in parameters.items()}
    moved: set[str] = set()
    restore = type(target._start).restore

    def look(weights: Any) -> None:
        moved.update(n for n, value in target.model.named_parameters().items() if not torch.equal(value, before[n]))
        restore(weights)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(target._start), "restore", look)
        for spec in specs:
            worker.run(spec)
    assert {name.partition(".")[0] for name in moved} == {"unet", "text_encoder"}
    assert target.model.named_parameters().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in target.model.named_parameters().items())


def test_a_model_with_the_base_models_text_encoder_is_attacked_in_its_denoiser(world: Path) -> None:
    campaign = Campaign.open(world / "model", policy=world / "policy.yaml", device="cpu")
    assert campaign.exposed_parts == {"unet"}
