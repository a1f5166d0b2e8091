"""``certify --plan`` in words."""

from safeguard.cli.certify import describe
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
