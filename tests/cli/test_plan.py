"""``certify --plan`` in words."""

from pathlib import Path

import click

from safeguard.cli import run
from safeguard.cli.certify import describe
from safeguard.cli.common import table
from safeguard.results.plan import Chance, Plan, Power


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
    # fine-tunes (2, 2, 2 x 3, 2, 2 x 5 and 3 looks), and three training sets of 32.
    # Steps: 100, 100, 200, 100, 600 and 100.
    images, steps = 2 * (3 * (144 + 3 * 48) + 48 * (2 + 2 + 6 + 2 + 10 + 3) + 3 * 32), 2 * 1200
    by_role = "2 on the base model, 6 on the unlearned model, 14 on the hardened model"
    assert lines[0] == f"22 units ({by_role}): {images} images, {steps} optimiser steps"
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
