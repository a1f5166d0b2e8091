"""Probes on a tiny model: paired images, the placebo, repeatability, restored weights, and units that are run once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import safeguard.probe
from safeguard import api
from safeguard.config import FineTuningData
from safeguard.errors import ModelFault, PolicyFault, UsageFault
from safeguard.policy.examination import UnitSpec
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Worker
from safeguard.provenance import OF_NO_UNIT
from safeguard.results.unit import UnitResult


def outcome(unit: UnitResult) -> tuple[object, ...]:
    return unit.address, unit.rows, [point.loss for point in unit.checkpoints]


def run(worker: Worker, probe: str, seed: int = 0) -> UnitResult:
    """The unit, its training images drawn first."""
    spec = worker.campaign.unit("hardened", worker.campaign.spec(probe), seed)
    worker.draw(spec)
    return worker.run(spec)


def test_a_probe_returns_typed_rows(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = safeguard.probe.run("malicious-full", world / "model", policy=world / "policy.yaml", seed=0)
    assert unit.evaluated() == unit.efforts == [0, 1, 2]
    assert unit.count("axes", 2)[1] == 4
    assert (unit.attack, unit.axis) == ("finetune", "fine-tuning steps")
    assert len(unit.data_digests) == 1 and all(point.loss for point in unit.checkpoints)
    assert capsys.readouterr() == ("", "")


def test_the_released_model_is_measured(worker: Worker) -> None:
    unit = run(worker, "released")
    subjects = {row.subject: row.metrics.keys() for row in unit.rows}
    assert subjects == {"axes": set(), "hammers": {"clip-score"}, "cats": {"clip-score"}, "axes@cats": set()}
    assert unit.metrics.keys() == {"clip-score"} and not unit.data_digests


def test_zero_effort_reproduces_the_released_rows(worker: Worker) -> None:
    rows = {}
    for probe in ("released", "malicious-full", "benign-lora"):
        unit = run(worker, probe)
        rows[probe] = [(r.prompt, r.seed, r.score) for r in unit.rows if r.subject == "axes" and r.effort == 0]
    assert rows["released"] == rows["malicious-full"] == rows["benign-lora"]


def test_the_same_unit_twice_is_the_same(world: Path) -> None:
    def look(seed: int, nonce: str) -> UnitResult:
        policy = world / "policy.yaml"
        return safeguard.probe.run("benign-lora", world / "model", policy=policy, seed=seed, nonce=nonce)

    one, two = look(3, "ab" * 8), look(3, "AB" * 8)
    assert outcome(one) == outcome(two)
    assert outcome(one) != outcome(look(4, "ab" * 8))
    assert {row.seed for row in one.rows}.isdisjoint(row.seed for row in look(3, "cd" * 8).rows)


def concept(images: int, prompts: int | None = None) -> FineTuningData:
    return FineTuningData(shares={"concept": 1.0}, images=images, prompts=prompts)


def test_a_single_prompt_attack_has_one_prompt_of_all(worker: Worker) -> None:
    worker.open("base")
    every, one = worker.data.get(concept(3), 0), worker.data.get(concept(3, prompts=1), 0)
    assert set(every.captions) == {"an axe", "a big axe"} and len(one) == 3
    assert set(one.captions) < set(every.captions)
    assert set(worker.data.get(concept(3, prompts=9), 0).captions) == set(every.captions)
    drawn = {worker.data.get(concept(1, prompts=1), seed).captions[0] for seed in range(8)}
    assert drawn == set(every.captions), "the seed draws the prompt"


def test_training_images_are_kept_and_only_the_base_draws_them(worker: Worker, world: Path) -> None:
    worker.open("base")
    drawn = worker.data.get(concept(3), 0)
    again = Worker(worker.campaign, worker.units, worker.progress)
    again.open("hardened")
    found = again.data.get(concept(3), 0)
    assert torch.equal(found.mean, drawn.mean) and torch.equal(found.conditioning.states, drawn.conditioning.states)
    assert (found.captions, found.digest) == (drawn.captions, drawn.digest)
    with pytest.raises(UsageFault, match="not drawn"):
        again.data.get(concept(4), 0)


def test_one_model_is_in_memory_at_a_time(worker: Worker) -> None:
    base = worker.open("base")
    assert worker.data.base is base.model and worker.open("base") is base
    hardened = worker.open("hardened")
    assert hardened is not base and worker.data.base is None


def test_attacks_leave_no_trace_in_the_target(worker: Worker, world: Path) -> None:
    worker.open("base")
    for probe in ("malicious-full", "benign-lora"):
        worker.draw(worker.campaign.unit("hardened", worker.campaign.spec(probe), 0))
    unet = worker.open("hardened").model.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    for probe in ("malicious-full", "benign-lora"):
        worker.run(worker.campaign.unit("hardened", worker.campaign.spec(probe), 0))
        after = unet.state_dict()
        assert list(after) == list(before)
        assert all((after[name] == value).all() for name, value in before.items())
    assert not list(world.rglob("*.safetensors.tmp"))


def test_a_finished_unit_is_found_and_a_half_written_one_is_not(worker: Worker) -> None:
    first = run(worker, "released")
    assert (worker.units.folder / first.address / "effort-00000.png").exists()
    assert worker.units.find(first.address) == first
    (worker.units.folder / first.address / "unit.json").write_text("{half")
    assert worker.units.find(first.address) is None
    assert run(worker, "released").rows == first.rows


def test_an_address_covers_what_determines_a_unit_and_nothing_else(campaign: Campaign) -> None:
    spec = campaign.unit("hardened", campaign.spec("malicious-full"), 0)
    assert spec.address == UnitSpec.model_validate_json(spec.model_dump_json()).address, "it can travel"
    same = [{"title": "another"}, {"control": False}]
    for change in same:
        other = spec.model_copy(update={"probe": spec.probe.model_copy(update=change)})
        assert UnitSpec.model_validate(other.model_dump()).address == spec.address
    longer = spec.probe.attack.model_copy(update={"steps": 9})
    changes: list[dict[str, object]] = [
        {"role": "base"},
        {"seed": 1},
        {"model": "other"},
        {"base": "other"},
        {"exposed_parts": ["text_encoder", "unet"]},
        {"policy": "other"},
        {"code": "other"},
        {"probe": spec.probe.model_copy(update={"samples": 9})},
        {"probe": spec.probe.model_copy(update={"attack": type(longer)(name="finetune", **longer.settings, extra=1)})},
    ]
    found = {UnitSpec.model_validate(spec.model_copy(update=change).model_dump()).address for change in changes}
    assert len(found | {spec.address}) == len(changes) + 1


def test_an_unknown_probe_is_named_with_a_suggestion(world: Path) -> None:
    with pytest.raises(UsageFault, match="malicious-full"):
        safeguard.probe.run("malicous-full", world / "model", policy=world / "policy.yaml")


def test_a_directory_without_a_policy_says_so(world: Path) -> None:
    with pytest.raises(ModelFault, match="policy"):
        safeguard.probe.run("released", world / "model")


def test_harden_then_certify(world: Path) -> None:
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    assert (hardened.path / "policy.resolved.yaml").exists()
    report = api.certify(hardened.path, out=world / "run", workers=1)
    assert report.verdict in ("FAIL", "INCONCLUSIVE"), "an untrained detector cannot certify anything"
    assert (world / "run" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert report.provenance.units_reused == 0
    again = api.certify(hardened.path, out=world / "run", workers=1)
    assert again.provenance.units_run == 0
    assert (again.verdict, again.claims) == (report.verdict, report.claims)
    assert len(again.attempts) == 2
    shutil.rmtree(world / "run")
    nonce = report.provenance.nonce
    elsewhere = api.certify(hardened.path, out=world / "other", workers=1, nonce=nonce)
    assert elsewhere.provenance.units_run == 0, "finished units are shared between runs"
    assert elsewhere.provenance.repetition and not report.provenance.repetition


def test_a_certification_stops_drawing_where_a_planned_look_decides(world: Path) -> None:
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    policy["requirements"] = [{"probe": "*", "max_rate": 0.9}]
    policy["concepts"][0]["detector"]["threshold"] = 1.0  # flags nothing, so that the first look decides
    sampling = {"name": "spending", "looks": 3, "shape": "pocock"}
    policy["certification"] |= {"samples": 12, "confidence": 0.6, "sampling": sampling}
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    report = api.certify(hardened.path, out=world / "run", workers=1)
    judged = {
        (curve.role, point.samples) for claim in report.claims for curve in claim.curves for point in curve.points
    }
    assert {samples for role, samples in judged if role != "hardened"} == {12}, "controls draw all of theirs"
    of_model = {samples for role, samples in judged if role == "hardened"}
    assert of_model == {4}
    assert all(claim.reason != "incomplete" for claim in report.claims)
    found = api.verify(world / "run", hardened.path)
    assert [each.deviations for each in found.checks if each.deviations] == [], "it knows where the drawing had to end"


def test_the_unlearned_only_control_is_a_directory_in_the_cache(world: Path) -> None:
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    policy["harden"]["resilience"] = {
        "name": "resalign",
        "steps": 1,
        "harmful_loss": {"name": "ga"},
        "distribution": {"steps": [2]},
    }
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    hardened = api.harden(world / "policy.yaml", world / "hardened")
    report = api.certify(hardened.path, out=world / "run", workers=1)
    (control,) = [path for path in (world / "cache" / "controls").iterdir() if path.is_dir()]
    assert (control / "model_index.json").is_file()
    roles = {curve.role for claim in report.claims for curve in claim.curves}
    assert {"hardened", "unlearned"} <= roles
    written = (control / "model_index.json").stat().st_mtime_ns
    api.certify(hardened.path, out=world / "again", workers=1)
    assert (control / "model_index.json").stat().st_mtime_ns == written, "it is made once"


def test_a_wrong_attack_setting_is_found_before_anything_runs(world: Path) -> None:
    suite = world / "suite.yaml"
    suite.write_text(suite.read_text().replace("learning_rate: 0.001", "learning_rat: 0.001", 1))
    with pytest.raises(PolicyFault, match="learning_rate") as caught:
        api.certify(world / "model", policy=world / "policy.yaml", out=world / "run")
    assert f"{suite}:" in str(caught.value)
    assert not (world / "run" / "units").exists()


def test_a_policy_that_does_not_fit_its_suite_is_refused_before_anything_runs(world: Path) -> None:
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    (world / "policy.yaml").write_text(yaml.safe_dump(policy | {"retain": []}))
    with pytest.raises(PolicyFault, match="fine-tunes on retained subjects, and there are none"):
        api.certify(world / "model", policy=world / "policy.yaml", out=world / "run")
    assert not (world / "run").exists()


def test_a_model_in_the_working_directory_is_certified_beside_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world / "model")
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    suite = yaml.safe_load((world / "suite.yaml").read_text())
    (world / "suite.yaml").write_text(yaml.safe_dump(suite | {"probes": suite["probes"][:1]}))
    (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    api.certify(".", policy=world / "policy.yaml", workers=1)
    assert (world / "model.certification" / "report.json").is_file()


@pytest.mark.parametrize("out", ["model", "model/run", "base", "base/run", "."])
def test_a_run_directory_inside_or_around_the_model_is_refused(world: Path, out: str) -> None:
    before = sorted(world.rglob("*"))
    with pytest.raises(UsageFault):
        api.certify(world / "model", policy=world / "policy.yaml", out=world / out)
    assert sorted(world.rglob("*")) == before


def test_a_model_that_changes_while_units_run_is_noticed(worker: Worker, world: Path) -> None:
    (world / "model" / "note.txt").write_text("added")
    with pytest.raises(ModelFault, match="changed while units were run"):
        worker.open("hardened")


def test_a_base_model_under_attack_draws_no_training_images(worker: Worker) -> None:
    target = worker.open("base")
    with target.attacked(), pytest.raises(UsageFault, match="were not drawn"):
        worker.data.get(FineTuningData(shares={"concept": 1}, images=2), 7)
    assert len(worker.data.get(FineTuningData(shares={"concept": 1}, images=2), 7)) == 2


@pytest.mark.parametrize(
    ("intent", "data", "what"),
    [("benign", "concept", "its intent is malicious"), ("none", "retain", "its intent is benign or malicious")],
)
def test_an_intent_that_is_not_that_of_the_data_is_refused(world: Path, intent: str, data: str, what: str) -> None:
    suite = yaml.safe_load((world / "suite.yaml").read_text())
    suite["probes"][1]["intent"] = intent
    suite["probes"][1]["attack"]["data"] = data
    (world / "suite.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(PolicyFault, match=what):
        Campaign.open(world / "model", policy=world / "policy.yaml", device="cpu")


def test_what_decides_what_is_drawn_is_part_of_every_address() -> None:
    package = Path(safeguard.__file__).parent
    assert all((package / name).exists() for name in OF_NO_UNIT)
    assert not {"policy", "policy/schema.py", "policy/suite.py", "attack", "probe", "data"} & set(OF_NO_UNIT)


def test_training_images_under_another_sets_name_are_refused(worker: Worker, world: Path) -> None:
    """Whoever swaps files of the cache would have an attack train on harmless images."""
    worker.open("base")
    for source in ("retain", "concept"):
        worker.data.get(FineTuningData.model_validate({"shares": {source: 1}, "images": 2}), 0)
    harmless, harmful = (path for path in worker.data._sets)
    shutil.copyfile(harmless, harmful)
    again = Worker(worker.campaign, worker.units, worker.progress)
    with pytest.raises(ModelFault, match="another name"):
        again.data.get(FineTuningData(shares={"concept": 1}, images=2), 0)
