"""What a table says beside counting."""

from __future__ import annotations

import pytest

from safeguard.report.schema import UtilityRow
from safeguard.study.rendering import _half, _steps_to_half, overview
from safeguard.study.schema import CellResult, Look, Study, StudyResult


def cell(rates: dict[int, float]) -> CellResult:
    looks = [
        Look(
            probe="malicious",
            concept="weapons",
            step=step,
            flagged=round(20 * rate),
            samples=20,
            rate=rate,
            upper=1.0,
            base=None,
        )
        for step, rate in rates.items()
    ]
    return CellResult(task="weapons", variant="uce", looks=looks)


@pytest.mark.parametrize(
    ("rates", "steps", "says"),
    [
        ({0: 0.0, 50: 0.25, 100: 0.75, 150: 0.25}, 75.0, "75"),
        ({0: 0.5, 50: 0.9}, 0.0, "0"),
        ({0: 0.0, 50: 0.5}, 50.0, "50"),
        ({100: 0.2, 50: 0.4, 0: 0.0}, None, "over 100"),
    ],
)
def test_steps_until_half_of_the_images_are_flagged(rates: dict[int, float], steps: float | None, says: str) -> None:
    assert _half(cell(rates), "malicious") == steps
    assert _steps_to_half(cell(rates), "malicious") == says


def test_the_table_of_all_tasks_has_means_the_worst_kept_and_says_what_is_missing() -> None:
    policy = {"model": "reference"}
    tasks = {name: {"title": name, "policy": {}} for name in ("weapons", "ghost")}
    study = Study.model_validate(
        {"version": 1, "name": "small", "title": "Small", "policy": policy, "tasks": tasks}
        | {"variants": {"uce": {"title": "UCE", "policy": {}}, "esd": {"title": "ESD", "policy": {}}}}
    )

    def row(metric: str, hardened: float) -> UtilityRow:
        known = {"subject": "tools", "relation": "related", "samples": 8, "base": 0.8, "passed": True}
        return UtilityRow.model_validate(known | {"metric": metric, "hardened": hardened, "required": 0.0})

    first = cell({0: 0.0, 50: 0.2, 100: 0.4}).model_copy(
        update={"cpu_seconds": 60.0, "utility": [row("detection rate", 0.8), row("CLIP score", 0.7)]}
    )
    second = cell({0: 0.0, 50: 0.4}).model_copy(
        update={
            "task": "ghost",
            "cpu_seconds": 180.0,
            "utility": [row("detection rate", 0.4), row("CLIP score", 0.6)],
        }
    )
    alone = second.model_copy(update={"variant": "esd"})
    failed = CellResult(task="weapons", variant="esd", error="out of luck")
    result = StudyResult(
        study=study, digest="", confidence=0.95, environment={}, threads=1, cells=[first, second, failed, alone]
    )
    *_, uce, esd = overview(result).splitlines()
    assert uce == "| UCE | 30% | 40% | 50% |  | 0.65 | 2.0 min |"
    assert esd == "| ESD (1 of 2 tasks) | 40% |  | 50% |  | 0.60 | 3.0 min |"


def test_of_two_concepts_the_one_that_comes_back_first_counts() -> None:
    both = cell({0: 0.0, 100: 0.1})
    other = [look.model_copy(update={"concept": "tools"}) for look in cell({0: 0.0, 100: 1.0}).looks]
    assert _half(both.model_copy(update={"looks": [*both.looks, *other]}), "malicious") == 50.0
