"""Nonce, plan, continuing, repeating, and edited units: what a certification rests on cannot be chosen afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from safeguard import api
from safeguard.cli.certify import certify as command
from safeguard.errors import UsageFault
from safeguard.probe.campaign import Campaign
from safeguard.probe.units import Units
from safeguard.results.report import Report
from safeguard.results.run_plan import read_plan
from safeguard.results.unit import UnitResult
from tests.contracts.runs import Killed
from tests.probe.worlds import make_world

FIRST_UNIT, LAST_UNIT = "base · released · seed 0", "hardened · released · seed 0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose suite only looks at models as they are."""
    folder = make_world(tmp_path_factory.mktemp("made"))
    suite = yaml.safe_load((folder / "suite.yaml").read_text())
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite | {"probes": suite["probes"][:1]}))
    return folder


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same with nothing certified yet; the weakly erased control is made once."""
    monkeypatch.setenv("SAFEGUARD_CACHE", str(made / "cache"))
    yield made
    for name in ("run", "other", "cache/units", "cache/attempts"):
        shutil.rmtree(made / name, ignore_errors=True)


def certify(world: Path, out: str = "run", **options: Any) -> Report:
    return api.certify(world / "model", policy=world / "policy.yaml", out=world / out, device="cpu", **options)


def unit_files(world: Path, folder: str = "run/units") -> dict[str, Path]:
    found = {path: UnitResult.model_validate_json(path.read_bytes()) for path in (world / folder).glob("*/unit.json")}
    return {unit.role: path for path, unit in found.items()}


def interrupted(world: Path, title: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        certify(world, progress=Killed(title, 0))


def test_the_plan_stands_before_the_first_image(world: Path) -> None:
    interrupted(world, FIRST_UNIT)
    plan = read_plan(world / "run")
    assert plan is not None and not unit_files(world)
    assert [(unit.role, unit.probe, unit.seed) for unit in plan.units] == [
        (role, "released", 0) for role in ("base", "unlearned", "hardened")
    ]
    assert plan.models.keys() == {"base", "unlearned", "hardened"} and plan.thresholds == {"axes": 0.4}
    assert (plan.samples, plan.limits[0].max_rate, plan.repetition) == (4, 0.5, False)


def test_an_interrupted_run_goes_on_with_its_own_nonce(world: Path) -> None:
    interrupted(world, LAST_UNIT)
    before = read_plan(world / "run")
    report = certify(world)
    assert before is not None and report.provenance.nonce == before.nonce
    assert (report.provenance.units_reused, report.provenance.repetition, report.provenance.again) == (2, False, False)
    assert len(report.attempts) == 1, "it is one attempt"
    again = certify(world)
    assert again.provenance.again and again.provenance.nonce == before.nonce and again.provenance.units_run == 0


def test_a_new_question_has_a_new_nonce_and_the_interrupted_one_is_told(world: Path) -> None:
    interrupted(world, LAST_UNIT)
    before = read_plan(world / "run")
    policy = yaml.safe_load((world / "policy.yaml").read_text())
    policy["requirements"][0]["max_rate"] = 0.9
    (world / "other.yaml").write_text(yaml.safe_dump(policy))
    report = api.certify(world / "model", policy=world / "other.yaml", out=world / "run", device="cpu")
    assert before is not None and report.provenance.nonce != before.nonce
    assert [attempt.verdict is None for attempt in report.attempts] == [True, False]


def test_every_certification_has_seeds_of_its_own_and_a_repetition_says_so(world: Path) -> None:
    first, second = certify(world), certify(world, "other")
    seeds = [
        {
            row.seed
            for row in UnitResult.model_validate_json(unit_files(world, f"{out}/units")["base"].read_bytes()).rows
        }
        for out in ("run", "other")
    ]
    assert seeds[0].isdisjoint(seeds[1]) and first.provenance.nonce != second.provenance.nonce
    assert len(second.attempts) == 2, "another run directory hides nothing"
    repeated = certify(world, "other", nonce=first.provenance.nonce.upper())
    assert repeated.provenance.repetition and repeated.provenance.units_run == 0
    assert "given, not drawn" in (world / "other" / "summary.md").read_text()
    assert repeated.integrity is not None and first.integrity is not None
    assert repeated.integrity.rows_root == first.integrity.rows_root


def test_roles_are_paired(world: Path) -> None:
    certify(world)
    units = [UnitResult.model_validate_json(path.read_bytes()) for path in unit_files(world).values()]
    assert len({tuple((row.subject, row.prompt, row.seed) for row in unit.rows) for unit in units}) == 1
    images = [[row.image for row in unit.rows] for unit in units]
    assert all(len(image) == 64 for each in images for image in each) and images[0] != images[1]


def test_fresh_uses_nothing_that_was_finished(world: Path) -> None:
    nonce = certify(world).provenance.nonce
    (world / "run" / "plan.json").write_text("{")
    fresh = certify(world, fresh=True)
    assert fresh.provenance.units_reused == 0 and fresh.provenance.nonce != nonce
    forced = certify(world, fresh=True, nonce=nonce)
    assert (forced.provenance.units_reused, forced.provenance.nonce) == (0, nonce)


def test_the_nonce_of_another_run_is_given_and_not_drawn(world: Path) -> None:
    known = certify(world, "other").provenance.nonce
    interrupted(world, FIRST_UNIT)
    path = world / "run" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nonce": known}))
    assert certify(world).provenance.repetition


def test_a_nonce_that_somebody_wrote_into_the_plan_counts_as_given(world: Path) -> None:
    interrupted(world, FIRST_UNIT)
    path = world / "run" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nonce": "ab" * 16}))
    report = certify(world)
    assert report.provenance.nonce == "ab" * 16 and report.provenance.repetition


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_a_plan_that_cannot_be_read_is_named(world: Path, text: str) -> None:
    (world / "run").mkdir()
    (world / "run" / "plan.json").write_text(text)
    with pytest.raises(UsageFault, match="not the plan of a run") as caught:
        certify(world)
    assert caught.value.where.endswith("plan.json") and not unit_files(world)


@pytest.mark.parametrize("nonce", ["", "xyz", "12", "0x" + "ab" * 16, "ab" * 65])
def test_what_is_no_nonce_is_refused_before_anything_is_done(world: Path, nonce: str) -> None:
    with pytest.raises(UsageFault, match="is no nonce"):
        certify(world, nonce=nonce)
    assert not (world / "run").exists()


def flag(unit: Any) -> None:
    unit["rows"][0]["flagged"] = not unit["rows"][0]["flagged"]


def repeat(unit: Any) -> None:
    unit["rows"] = [unit["rows"][0]] * len(unit["rows"])


def lose(unit: Any) -> None:
    del unit["rows"][1]


def reseed(unit: Any) -> None:
    unit["rows"][0]["seed"] += 1


def readdress(unit: Any) -> None:
    unit["address"] = "0" * 64


def relabel(unit: Any) -> None:
    unit["role"] = "unlearned"


def lower(unit: Any) -> None:
    unit["thresholds"]["axes"] = 1.0


def unmake(unit: Any) -> None:
    unit["facts"] = {"probe": 1}


@pytest.fixture(scope="module")
def certified(made: Path) -> Iterator[tuple[Campaign, Path]]:
    """A campaign, and the run directory of its certification."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGUARD_CACHE", str(made / "cache"))
        nonce = certify(made, "certified").provenance.nonce
        yield (
            Campaign.open(made / "model", policy=made / "policy.yaml", device="cpu", nonce=nonce),
            made / "certified",
        )


@pytest.mark.parametrize("edit", [flag, repeat, lose, reseed, readdress, relabel, lower, unmake])
def test_a_unit_that_was_edited_is_refused_and_not_run_again(
    certified: tuple[Campaign, Path], tmp_path: Path, edit: Callable[[Any], None]
) -> None:
    campaign, run_dir = certified
    shutil.copytree(run_dir / "units", tmp_path / "units")
    address = campaign.unit("hardened", campaign.spec("released"), 0).address
    units, path = Units(tmp_path, shared=False), tmp_path / "units" / address / "unit.json"
    assert units.find(address, campaign.examination) is not None
    unit = json.loads(path.read_text())
    edit(unit)
    path.write_text(json.dumps(unit))
    with pytest.raises(UsageFault, match="was edited") as caught:
        units.find(address, campaign.examination)
    assert caught.value.where == str(path) and "--fresh" in caught.value.fix
    assert json.loads(path.read_text()) == unit, "it is evidence of something"
    assert Units(tmp_path, shared=False, fresh=True).find(address, campaign.examination) is None


def test_edited_units_of_the_cache_are_refused_by_certify(world: Path) -> None:
    nonce = certify(world).provenance.nonce
    path = world / "cache" / "units" / unit_files(world)["hardened"].parent.name / "unit.json"
    unit = json.loads(path.read_text())
    flag(unit)
    path.write_text(json.dumps(unit))
    with pytest.raises(UsageFault, match="was edited"):
        certify(world, "other", nonce=nonce)


def test_a_deleted_log_is_said_in_the_report(world: Path) -> None:
    certify(world)
    (world / "run" / "attempts.jsonl").unlink()
    report = certify(world)
    assert report.integrity is not None and len(report.attempts) == 2
    assert any("lacks 2 lines that the cache has" in problem for problem in report.integrity.log_problems)
    assert "lacks 2 lines" in (world / "run" / "summary.md").read_text()
    assert "lacks 2 lines" in (world / "run" / "report.html").read_text()


def test_a_log_that_was_cut_is_no_crash(world: Path) -> None:
    certify(world)
    path = world / "run" / "attempts.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    report = certify(world)
    assert report.integrity is not None and any("is kept as" in what for what in report.integrity.log_problems)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    return done.exit_code, done.output


def test_the_first_line_says_whose_policy_it_is(world: Path) -> None:
    policy = str(world / "policy.yaml")
    model = Path(shutil.copytree(world / "model", world / "carrying", dirs_exist_ok=True))
    shutil.copyfile(policy, model / "policy.resolved.yaml")
    out = str(world / "run")
    code, said = run(str(model), "--out", out, "--device", "cpu", "--workers", "1")
    assert said.splitlines()[0].startswith("policy tiny, which travelled in the model directory: whoever delivers")
    assert "no model can pass: even no false alarm in 4 benign images shows" in said, "before hours of work"
    assert code == 3 and "whoever delivers the model chose this exam" in (world / "run" / "report.html").read_text()
    assert api.whose(model, policy=policy).endswith("the same as the one the model was hardened with")
    assert api.whose(world / "model", policy=policy).endswith("the model directory carries none")
    other = yaml.safe_load((world / "policy.yaml").read_text()) | {"seed": 7}
    (world / "mine.yaml").write_text(yaml.safe_dump(other))
    assert api.whose(model, policy=world / "mine.yaml").endswith("not the one the model was hardened with")
    (model / "policy.resolved.yaml").write_text("{")
    assert api.whose(model, policy=policy).endswith("the one in the model directory cannot be read")


def test_a_pinned_policy_is_that_one_or_none(world: Path) -> None:
    digest = certify(world).provenance.policy_digest
    assert certify(world, policy_digest=digest[:16].upper()).provenance.policy_digest == digest
    for pin in ("0" * 64, digest[:8], ""):
        with pytest.raises(UsageFault, match="the policy's digest is"):
            certify(world, policy_digest=pin)


def test_policy_and_suite_are_embedded_as_data(world: Path) -> None:
    report = certify(world)
    concept = report.basis["policy"]["concepts"][0]
    assert (concept["prompts"], concept["labels"]) == (["an axe", "a big axe"], ["axe"])
    assert report.basis["suite"]["probes"][0]["id"] == "released"
    assert report.basis["policy"]["requirements"][0]["max_rate"] == 0.5
