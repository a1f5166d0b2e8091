"""``certify --plan`` in words."""

from pathlib import Path

import click
import yaml

from safeguard import api
from safeguard.cli import run
from safeguard.cli.common import table
from safeguard.cli.plan import describe
from safeguard.results.plan import Chance, Plan, Power, SeedChance, SeedRow


def power(probe: str, most_hits: int | None, *chances: float) -> Power:
    return Power(
        requirement="malicious-*",
        probe=probe,
        concept="weapons",
        limit=0.1,
        samples=100,
        bounds=6,
        most_hits=most_hits,
        smallest_samples=30,
        chances=[Chance(rate=rate, probability=chance) for rate, chance in zip((0.0, 0.05), chances, strict=True)],
    )


def test_a_plan_shows_cost_power_and_warnings():
    text = describe(
        Plan(
            units=12,
            units_by_role={"base": 4, "hardened": 8},
            images=4000,
            optimiser_steps=800,
            network_calls=3200,
            powers=[power("malicious-full", 4, 1.0, 0.25), power("malicious-lora\x1b[2J", None, 0.0, 0.0)],
            chances=[Chance(rate=0.0, probability=0.0), Chance(rate=0.05, probability=0.0)],
            warnings=["too few images"],
        )
    )
    lines = text.splitlines()
    assert lines[0] == "12 units (4 on the base model, 8 on the hardened model): 4000 images, 800 optimiser steps"
    assert lines[2].split() == [
        "requirement",
        "probe",
        "concept",
        "limit",
        "most",
        "hits",
        "pass",
        "at",
        "0%",
        "pass",
        "at",
        "5%",
    ]
    assert lines[4].split() == ["malicious-*", "malicious-full", "weapons", "0.1", "4", "of", "100", "1.00", "0.25"]
    assert lines[5].split()[1:] == ["malicious-lora[2J", "weapons", "0.1", "none", "passes", "0.00", "0.00"]
    assert lines[-1] == "warning: too few images"
    assert "\x1b" not in text


def small(**changes: object) -> Plan:
    """A plan of one requirement."""
    fields: dict[str, object] = {
        "units": 1,
        "units_by_role": {"hardened": 1},
        "images": 100,
        "optimiser_steps": 0,
        "network_calls": 0,
        "powers": [power("malicious-full", 4, 1.0, 0.25)],
        "chances": [Chance(rate=0.0, probability=1.0), Chance(rate=0.05, probability=0.25)],
        "warnings": [],
    }
    return Plan.model_validate(fields | changes)


def test_a_plan_says_whether_the_detector_is_in_its_chances():
    assert "left out for weapons, where nobody measured them" in describe(small())
    known = power("malicious-full", 4, 1.0, 0.25).model_copy(update={"sensitivity": 0.9})
    assert "measured errors are in" in describe(small(powers=[known]))


def test_a_plan_shows_what_a_pass_would_leave_open_and_how_likely_it_is_if_seeds_differ():
    row = SeedRow(
        seeds=5,
        bad_share=0.474,
        chances=[
            SeedChance(share_of_limit=0.5, icc=0.0, probability=0.61),
            SeedChance(share_of_limit=1.0, icc=0.3, probability=0.07),
        ],
    )
    lines = describe(small(by_seeds=[row])).splitlines()
    (header,) = [line for line in lines if "may be bad" in line and "seeds" in line and "limit," in line]
    assert "of limit, alike" in header and "of limit, ICC 0.3" in header
    assert lines[lines.index(header) + 2].split() == ["5", "47%", "0.61", "0.07"]


def test_a_plan_that_no_model_could_pass_is_refused_with_the_number_it_needs(tmp_path: Path, capsys):
    shipped = Path(__file__).parents[2] / "policies" / "quickstart.yaml"
    declared = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    declared["requirements"] = [{"probe": "*", "max_rate": 0.01}]
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    assert run(["certify", str(tmp_path), "--policy", str(tmp_path / "policy.yaml"), "--plan"]) == 2
    out, err = capsys.readouterr()
    assert "none passes" in out, "the plan is shown all the same"
    assert "no model can pass" in err and "are needed" in err and "certification.samples" in err


def test_the_plan_of_the_quickstart_knows_its_detector(tmp_path: Path):
    policy = Path(__file__).parents[2] / "policies" / "quickstart.yaml"
    found = api.plan(tmp_path, policy=policy)
    assert all(power.sensitivity is not None and power.sensitivity > 0.5 for power in found.powers)
    assert all(power.false_positive_rate is not None for power in found.powers)
    assert found.impossible == [] and [row.seeds for row in found.by_seeds][:2] == [1, 2]


def test_a_plan_says_which_detector_is_not_here_yet(tmp_path: Path):
    shipped = Path(__file__).parents[2] / "policies" / "quickstart.yaml"
    declared = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    declared["concepts"][0]["detector"] = {"name": "clip", "checkpoint": "nobody/has-this", "vocabulary": ["a", "b"]}
    declared["concepts"][0]["labels"] = ["a"]
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    found = api.plan(tmp_path, policy=tmp_path / "policy.yaml")
    assert any("the detector is not here yet" in warning for warning in found.warnings)
    assert all(power.sensitivity is None for power in found.powers)


def test_a_table_in_a_pipe_has_a_line_per_row_however_long():
    lines = table(("what", "how\nmany"), [("x" * 300, 1), ("[bold]y[/bold]\x1b[2J\u202e", 22)]).splitlines()
    assert lines[0].split() == ["what", "how", "many"] and set(lines[1]) == {"-"}
    assert lines[2].split() == ["x" * 300, "1"] and lines[3].split() == ["[bold]y[/bold][2J", "22"]


def test_a_table_on_a_terminal_fits_it(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = click.unstyle(table(("what", "many"), [("words " * 30, 1)])).splitlines()
    assert max(map(len, lines)) <= 40 and sum(line.count("words") for line in lines) == 30


def test_the_plan_of_the_quickstart_counts_what_its_policy_and_suite_say(tmp_path: Path, capsys):
    policy = Path(__file__).parents[2] / "policies" / "quickstart.yaml"
    assert run(["certify", str(tmp_path), "--policy", str(policy), "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Images per seed: three released units of 144 weapons and 48 of each of three subjects, then 48 per look of the
    # fine-tunes (two of each of two benign ones on two models, 4, 3 and 3 of three malicious ones on two), 24 of the
    # witness at looks that are no start, and four training sets of 32. Steps: twice 100 on two models; 200, 100 and 100
    # on two.
    images, steps = 2 * (3 * (144 + 3 * 48) + 48 * 2 * (4 + 10) + 24 * 2 * (2 + 7) + 4 * 32), 2 * 2 * 600
    by_role = "6 on the base model, 8 on the unlearned model, 12 on the hardened model"
    assert lines[0] == f"26 units ({by_role}): {images} images, {steps} optimiser steps"
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
