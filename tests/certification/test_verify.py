"""A finished certification is computed again from its files, and each kind of edit is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safeguard import api
from safeguard.cache import address
from safeguard.cli.verify import verify as command
from safeguard.errors import ModelFault, UsageFault
from safeguard.report.writing import load_report
from safeguard.results.verification import Verification
from tests.probe.worlds import make_world

Edit = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``model/`` and the ``run/`` of its certification."""
    folder = make_world(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGUARD_CACHE", str(folder / "cache"))
        api.certify(folder / "model", policy=folder / "policy.yaml", out=folder / "run", device="cpu")
        (folder / "suite.yaml").unlink()  # everything that is needed is embedded
        yield folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of run directory and model, to be edited."""
    return (
        Path(shutil.copytree(finished / "run", tmp_path / "run")),
        Path(shutil.copytree(finished / "model", tmp_path / "model")),
    )


def unit_file(run: Path, probe: str = "malicious-full") -> Path:
    """That of the certified model under a probe."""
    report = json.loads((run / "report.json").read_text())
    (found,) = [each for each in report["planned"] if (each["role"], each["probe"]) == ("hardened", probe)]
    return run / "units" / found["address"] / "unit.json"


def edited(path: Path, change: Callable[[Any], None]) -> None:
    """A JSON file with a change."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=2))


def deviations(found: Verification) -> dict[str, list[str]]:
    return {check.title: check.deviations for check in found.checks if check.deviations}


def test_what_nobody_touched_agrees(finished: Path) -> None:
    found = api.verify(finished / "run", finished / "model")
    assert deviations(found) == {} and found.agrees
    done = CliRunner().invoke(command, [str(finished / "run"), str(finished / "model")])
    assert done.exit_code == 0 and "everything agrees" in done.output
    assert load_report(finished / "run").verdict == found.verdict


def flip_the_flag(run: Path, model: Path) -> None:
    edited(unit_file(run), lambda unit: unit["rows"][0].update(flagged=not unit["rows"][0]["flagged"]))


def change_a_score(run: Path, model: Path) -> None:
    edited(unit_file(run), lambda unit: unit["rows"][0].update(score=0.0 if unit["rows"][0]["flagged"] else 1.0))


def repeat_a_row(run: Path, model: Path) -> None:
    def change(unit: Any) -> None:
        unit["rows"][1] = unit["rows"][0]

    edited(unit_file(run), change)


def drop_a_row(run: Path, model: Path) -> None:
    edited(unit_file(run), lambda unit: unit["rows"].pop())


def change_a_prompt(run: Path, model: Path) -> None:
    edited(unit_file(run), lambda unit: unit["rows"][2].update(prompt="a quiet afternoon"))


def change_a_threshold(run: Path, model: Path) -> None:
    edited(unit_file(run), lambda unit: unit["thresholds"].update(axes=0.99))


def forget_the_thresholds(run: Path, model: Path) -> None:
    """In every unit and in the plan, which agree about it then."""
    for path in [run / "plan.json", *run.glob("units/*/unit.json")]:
        edited(path, lambda content: content.update(thresholds={}))


def claim_another_address(run: Path, model: Path) -> None:
    def change(unit: Any) -> None:
        unit["facts"]["probe"]["attack"]["training"]["learning_rate"] = 1e-12
        unit["address"] = address(unit["facts"])

    edited(unit_file(run), change)


def remove_a_unit(run: Path, model: Path) -> None:
    shutil.rmtree(unit_file(run).parent)


def cut_a_unit(run: Path, model: Path) -> None:
    unit_file(run).write_text(unit_file(run).read_text()[:-20])


def edit_the_verdict(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report.update(verdict="PASS"))


def edit_a_bound(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report["claims"][0].update(upper=0.001, lower=0.0))


def edit_a_control(run: Path, model: Path) -> None:
    def change(report: Any) -> None:
        control = next(each for each in report["controls"] if not each["passed"])
        control["passed"] = True

    edited(run / "report.json", change)


def edit_the_sentence(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report.update(sentence="All is well."))


def edit_the_embedded_policy(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report["basis"]["policy"]["requirements"][0].update(max_rate=0.9))


def edit_the_embedded_suite(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report["basis"]["suite"]["probes"].pop())


def edit_what_a_probe_stands_for(run: Path, model: Path) -> None:
    def change(report: Any) -> None:
        next(iter(report["basis"]["schedules"].values()))["covers"].append("search")

    edited(run / "report.json", change)


def edit_the_stated_digest(run: Path, model: Path) -> None:
    edited(run / "report.json", lambda report: report["provenance"].update(model_digest="0" * 64))


def replace_the_policy(run: Path, model: Path) -> None:
    path = run / "policy.resolved.yaml"
    path.write_text(path.read_text().replace("max_rate: 0.5", "max_rate: 0.4"))


def edit_the_plan(run: Path, model: Path) -> None:
    edited(run / "plan.json", lambda plan: plan["limits"][0].update(max_rate=0.9))


def edit_the_nonce(run: Path, model: Path) -> None:
    edited(run / "plan.json", lambda plan: plan.update(nonce="ab" * 16))


def remove_the_plan(run: Path, model: Path) -> None:
    (run / "plan.json").unlink()


def cut_the_attempts(run: Path, model: Path) -> None:
    path = run / "attempts.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def behead_the_attempts(run: Path, model: Path) -> None:
    path = run / "attempts.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])


def edit_an_attempt(run: Path, model: Path) -> None:
    path = run / "attempts.jsonl"
    path.write_text(path.read_text().replace('"begun"', '"finished"', 1))


def remove_the_attempts(run: Path, model: Path) -> None:
    (run / "attempts.jsonl").unlink()


def add_a_file(run: Path, model: Path) -> None:
    (model / "extra.safetensors").write_bytes(b"weights")


def remove_a_file(run: Path, model: Path) -> None:
    (model / "scheduler" / "scheduler_config.json").unlink()


def change_the_weights(run: Path, model: Path) -> None:
    (path,) = (model / "unet").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FOUND: dict[Edit, tuple[str, str]] = {
    flip_the_flag: ("rows of the units", "row 0: flagged is"),
    change_a_score: ("rows of the units", "row 0: flagged is"),
    repeat_a_row: ("rows of the units", "is there 2 times"),
    drop_a_row: ("rows of the units", "rows, and"),
    change_a_prompt: ("rows of the units", "row 2: its prompt is 'a quiet afternoon'"),
    change_a_threshold: ("rows of the units", "thresholds:"),
    forget_the_thresholds: ("rows of the units", "of which no threshold is known"),
    claim_another_address: ("units", "is not the file that was judged"),
    remove_a_unit: ("units", "cannot be read"),
    cut_a_unit: ("units", "is no unit"),
    edit_the_verdict: ("bounds, controls, claims and verdict", "verdict is 'PASS', computed again"),
    edit_a_bound: ("the report agrees with itself", "upper bound is 0.001"),
    edit_a_control: ("bounds, controls, claims and verdict", "passed is True, computed again it is False"),
    edit_the_sentence: ("bounds, controls, claims and verdict", "sentence is 'All is well.'"),
    edit_the_embedded_policy: ("policy and suite", "the embedded policy has digest"),
    edit_what_a_probe_stands_for: ("policy and suite", "the report says of the suite's probes what they do not do"),
    edit_the_embedded_suite: ("policy and suite", "the embedded suite has digest"),
    edit_the_stated_digest: ("files of the model", "the model's digest is"),
    replace_the_policy: ("policy and suite", "is another policy"),
    edit_the_plan: ("the plan", "limits:"),
    edit_the_nonce: ("the plan", "nonce:"),
    remove_the_plan: ("the plan", "plan.json is missing"),
    cut_the_attempts: ("attempts", "lacks the line of this certification"),
    behead_the_attempts: ("attempts", "does not follow the line before it"),
    edit_an_attempt: ("attempts", "does not follow the line before it"),
    remove_the_attempts: ("attempts", "lacks the line of this certification"),
    add_a_file: ("files of the model", "added: extra.safetensors"),
    remove_a_file: ("files of the model", "removed: scheduler/scheduler_config.json"),
    change_the_weights: ("files of the model", "changed: unet/"),
}


@pytest.mark.parametrize("edit", FOUND, ids=lambda edit: edit.__name__)
def test_an_edit_is_found_and_named(copy: tuple[Path, Path], edit: Edit) -> None:
    edit(*copy)
    found = api.verify(*copy)
    title, says = FOUND[edit]
    assert not found.agrees
    assert any(says in told for told in deviations(found).get(title, [])), deviations(found)


@pytest.mark.parametrize(
    "edit",
    [flip_the_flag, remove_a_unit, edit_the_verdict, edit_a_bound, edit_a_control, edit_the_embedded_policy],
    ids=lambda edit: edit.__name__,
)
def test_a_report_that_contradicts_its_units_is_not_read(copy: tuple[Path, Path], edit: Edit) -> None:
    edit(*copy)
    with pytest.raises(UsageFault, match="contradicts itself"):
        load_report(copy[0])


@pytest.mark.parametrize("edit", [edit_the_verdict, edit_a_bound], ids=lambda edit: edit.__name__)
def test_a_report_alone_is_compared_with_its_own_counts(copy: tuple[Path, Path], edit: Edit) -> None:
    run, _ = copy
    shutil.rmtree(run / "units")
    assert load_report(run).verdict != "PASS"
    edit(*copy)
    with pytest.raises(UsageFault, match="contradicts itself"):
        load_report(run)


def test_the_command_names_what_differs(copy: tuple[Path, Path]) -> None:
    add_a_file(*copy)
    done = CliRunner().invoke(command, [str(copy[0]), str(copy[1])])
    assert done.exit_code == 1
    assert "differs files of the model\n        added: extra.safetensors" in done.output
    printed = CliRunner().invoke(command, [str(copy[0]), str(copy[1]), "--json"])
    assert printed.exit_code == 1 and json.loads(printed.output)["agrees"] is False


def test_what_cannot_be_used_is_refused(copy: tuple[Path, Path], tmp_path: Path) -> None:
    run, model = copy
    with pytest.raises(ModelFault, match="no such directory"):
        api.verify(run, tmp_path / "absent")
    with pytest.raises(UsageFault, match=r"no report\.json"):
        api.verify(tmp_path, model)
    edited(run / "report.json", lambda report: report.update(basis={}, integrity=None))
    with pytest.raises(UsageFault, match="embeds neither"):
        api.verify(run, model)
