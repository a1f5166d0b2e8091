"""Probes on a tiny model: paired images, the placebo, repeatability, restored weights, and units that are run once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import safeguard.probe
from safeguard import api
from safeguard.errors import ModelFault, PolicyFault, UsageFault
from safeguard.probe.campaign import Campaign
from safeguard.probe.units import Units, run_unit
from safeguard.results.unit import UnitResult


def outcome(unit: UnitResult) -> tuple[object, ...]:
    return unit.digest, unit.rows, [point.loss for point in unit.checkpoints]


def test_a_probe_returns_typed_rows(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = safeguard.probe.run("malicious-full", world / "base", policy=world / "policy.yaml", seed=0)
    assert unit.steps() == [0, 1, 2]
    assert unit.count("axes", 2)[1] == 4
    assert unit.data_digest and all(point.loss for point in unit.checkpoints)
    assert capsys.readouterr() == ("", "")


def test_zero_steps_reproduce_the_released_rows(world: Path) -> None:
    rows = {}
    for probe in ("released", "malicious-full", "benign-lora"):
        unit = safeguard.probe.run(probe, world / "base", policy=world / "policy.yaml")
        rows[probe] = [(r.prompt, r.seed, r.score) for r in unit.rows if r.subject == "axes" and r.step == 0]
    assert rows["released"] == rows["malicious-full"] == rows["benign-lora"]


def test_the_same_unit_twice_is_the_same(world: Path) -> None:
    one, two = (safeguard.probe.run("benign-lora", world / "base", policy=world / "policy.yaml", seed=3) for _ in "ab")
    assert outcome(one) == outcome(two)
    other = safeguard.probe.run("benign-lora", world / "base", policy=world / "policy.yaml", seed=4)
    assert outcome(one) != outcome(other)


def test_a_single_prompt_attack_has_one_prompt_of_all(world: Path) -> None:
    data = Campaign.open(world / "base", policy=world / "policy.yaml", device="cpu").open_hardened().data
    every, one = data.get("concept", 3, 0), data.get("concept", 3, 0, prompts=1)
    assert set(every.captions) == {"an axe", "a big axe"} and len(one) == 3
    assert set(one.captions) < set(every.captions)
    assert set(data.get("concept", 3, 0, prompts=9).captions) == set(every.captions)
    drawn = {data.get("concept", 1, seed, prompts=1).captions[0] for seed in range(8)}
    assert drawn == set(every.captions), "the seed draws the prompt"


def test_probes_leave_no_trace_in_the_session(world: Path) -> None:
    campaign = Campaign.open(world / "base", policy=world / "policy.yaml", device="cpu")
    session = campaign.open_hardened()
    before = {name: value.clone() for name, value in session.model.unet.state_dict().items()}
    for probe in ("malicious-full", "benign-lora"):
        run_unit(session, campaign.spec(probe), 0, campaign.base_digest, Units(world / "run", shared=False))
        after = session.model.unet.state_dict()
        assert list(after) == list(before)
        assert all((after[name] == value).all() for name, value in before.items())
    assert not list(world.rglob("*.safetensors.tmp"))


def test_a_finished_unit_is_found_and_a_half_written_one_is_not(world: Path) -> None:
    campaign = Campaign.open(world / "base", policy=world / "policy.yaml", device="cpu")
    session, units = campaign.open_hardened(), Units(world / "run", shared=False)
    first, known = run_unit(session, campaign.spec("released"), 0, campaign.base_digest, units)
    assert not known and (units.folder / first.digest / "step-00000.png").exists()
    assert run_unit(session, campaign.spec("released"), 0, campaign.base_digest, units) == (first, True)
    (units.folder / first.digest / "unit.json").write_text("{half")
    again, known = run_unit(session, campaign.spec("released"), 0, campaign.base_digest, units)
    assert not known and again.rows == first.rows


def test_an_unknown_probe_is_named_with_a_suggestion(world: Path) -> None:
    with pytest.raises(UsageFault, match="malicious-full"):
        safeguard.probe.run("malicous-full", world / "base", policy=world / "policy.yaml")


def test_a_directory_without_a_policy_says_so(world: Path) -> None:
    with pytest.raises(ModelFault, match="policy"):
        safeguard.probe.run("released", world / "base")


def test_harden_then_certify(world: Path) -> None:
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    assert (hardened.path / "policy.resolved.yaml").exists() and hardened.record["series"]["erasure loss"]
    report = api.certify(hardened.path, out=world / "run")
    assert report.verdict in ("FAIL", "INCONCLUSIVE"), "an untrained detector cannot certify anything"
    assert (world / "run" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert report.provenance.units_reused == 0
    again = api.certify(hardened.path, out=world / "run")
    assert again.provenance.units_run == 0
    assert (again.verdict, again.claims) == (report.verdict, report.claims)
    assert len(again.attempts) == 2
    shutil.rmtree(world / "run")
    elsewhere = api.certify(hardened.path, out=world / "other")
    assert elsewhere.provenance.units_run == 0, "finished units are shared between runs"


def test_a_wrong_probe_setting_is_found_before_anything_runs(world: Path) -> None:
    suite = world / "suite.yaml"
    suite.write_text(suite.read_text().replace("learning_rate: 0.001", "learning_rat: 0.001", 1))
    with pytest.raises(PolicyFault, match="learning_rate"):
        api.certify(world / "base", policy=world / "policy.yaml", out=world / "run")
    assert not (world / "run" / "units").exists()


def test_more_samples_begin_with_the_images_of_fewer(world: Path) -> None:
    session = Campaign.open(world / "base", policy=world / "policy.yaml", device="cpu").open_hardened()
    few, more = session.judge_concepts(0, 0).rows, session.judge_concepts(0, 0, 6).rows
    assert len(more) == 6 and more[: len(few)] == few
