"""What a table says beside counting."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from safeguard.policy.study import Study
from safeguard.results.report import UtilityRow
from safeguard.study.curves import _panel
from safeguard.study.pictures import _firsts
from safeguard.study.rendering import MEBIBYTE, _half, _steps_to_half, markdown, overview, table
from safeguard.study.results import CellResult, Observation, StudyResult


def cell(rates: dict[int, float], seed: int = 0) -> CellResult:
    observations = [
        Observation(
            probe="malicious",
            concept="weapons",
            step=step,
            flagged=round(20 * rate),
            samples=20,
            rate=rate,
            upper=1.0,
            base=0.9 + seed / 100,
        )
        for step, rate in rates.items()
    ]
    return CellResult(task="weapons", variant="uce", seed=seed, observations=observations)


def study_of(tasks: list[str], variants: list[str]) -> Study:
    parts = {name: {"title": name.upper(), "policy": {}} for name in (*tasks, *variants)}
    return Study.model_validate(
        {"version": 1, "name": "small", "title": "Small", "policy": {}}
        | {"tasks": {name: parts[name] for name in tasks}, "variants": {name: parts[name] for name in variants}}
    )


def result_of(study: Study, cells: list[CellResult]) -> StudyResult:
    return StudyResult(study=study, digest="", confidence=0.95, environment={}, threads=1, cells=cells)


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
    study = study_of(["weapons", "ghost"], ["uce", "esd"])

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
    failed = CellResult(task="weapons", variant="esd", seed=0, error="out of luck")
    result = result_of(study, [first, second, failed, alone])
    *_, uce, esd = overview(result).splitlines()
    assert uce == "| UCE | 30% | 40% | 50% |  | 0.65 | 2.0 min |"
    assert esd == "| ESD (1 of 2 runs) | 40% |  | 50% |  | 0.60 | 3.0 min |"


def test_of_two_concepts_the_one_that_comes_back_first_counts() -> None:
    both = cell({0: 0.0, 100: 0.1})
    other = [observed.model_copy(update={"concept": "tools"}) for observed in cell({0: 0.0, 100: 1.0}).observations]
    assert _half(both.model_copy(update={"observations": [*both.observations, *other]}), "malicious") == 50.0


def test_of_several_seeds_each_count_is_shown_with_the_largest_bound() -> None:
    study = study_of(["weapons"], ["uce", "esd"])

    def tuned(one: CellResult, upper: float, before: float, after: float, seconds: float, mebibytes: int) -> CellResult:
        first, middle, last = one.observations
        observations = [
            first.model_copy(update={"training_loss": before}),
            middle.model_copy(update={"upper": upper}),
            last.model_copy(update={"training_loss": after}),
        ]
        return one.model_copy(
            update={"observations": observations, "cpu_seconds": seconds, "peak_bytes": mebibytes * MEBIBYTE},
        )

    found = [
        tuned(cell({0: 0.0, 50: 0.2, 100: 0.8}, seed=4), 0.34, 0.2, 0.1, 60.0, 5),
        tuned(cell({0: 0.0, 50: 0.4, 100: 0.4}, seed=7), 0.37, 0.4, 0.2, 180.0, 3),
    ]
    failed = CellResult(task="weapons", variant="uce", seed=5, error="out of luck")
    nothing = CellResult(task="weapons", variant="esd", seed=4, error="no memory")
    result = result_of(study, [found[0], failed, found[1], nothing])
    *_, untouched, uce, esd, _, first, second = table(result, "weapons").splitlines()
    assert untouched.startswith("| *untouched* | 96% | 96% |")
    assert uce == (
        "| UCE (2 of 3 runs) | 4, –, 8 (37%) | 16, –, 8 (100%) | 75, –, over 100 | 0.300 → 0.150 |  |  |  "
        "| 2.0 min | 5 MiB |"
    )
    assert esd.startswith("| ESD | no memory |")
    assert (first, second) == ("* UCE, seed 5: out of luck", "* ESD, seed 4: no memory")
    assert "Seeds 4, 5, 7: counts" in markdown(result) and "means over the tasks and seeds" in overview(result)
    assert _firsts(result.cells) == {("weapons", "uce"): found[0]}
    alone = result_of(study, [found[0], nothing])
    assert "Seeds" not in markdown(alone) and "means over the tasks," in overview(alone)

    lost = found[1].observations[-1].model_copy(update={"training_loss": None})
    diverged = found[1].model_copy(update={"observations": [*found[1].observations[:-1], lost]})
    assert "| 0.300 → 0.100, 1 of 2 diverged |" in table(result_of(study, [found[0], diverged]), "weapons")
    assert "| 0.400 → diverged |" in table(result_of(study, [diverged]), "weapons")


def test_what_one_seed_or_variant_did_not_look_at_is_left_out() -> None:
    study = study_of(["weapons"], ["uce", "esd"])
    short, long = cell({0: 0.0, 50: 0.2}, seed=4), cell({0: 0.0, 50: 0.4, 100: 0.6}, seed=7)
    observations = [
        observed.model_copy(update={"probe": "clean", "training_loss": 0.1}) for observed in long.observations
    ]
    other = long.model_copy(update={"variant": "esd", "observations": observations})
    unknown = [observed.model_copy(update={"base": None}) for observed in short.observations]
    *_, untouched, uce, esd = table(
        result_of(study, [short.model_copy(update={"observations": unknown}), long, other]), "weapons"
    ).splitlines()
    assert untouched.startswith("| *untouched* | 97% | 97% | 97% | 97% |")
    assert uce.startswith("| UCE | 4, 8 (100%) | –, 12 (100%) |  |  |  |  |")
    assert esd.startswith("| ESD |  |  | 8 (100%) | 12 (100%) | 75 | 0.100 → 0.100 |")


def test_the_curve_of_several_seeds_is_their_mean_in_a_band() -> None:
    study = study_of(["weapons"], ["uce"])
    cells = [cell({0: 0.0, 50: 0.2, 100: 0.8}, seed=4), cell({0: 0.0, 50: 0.4, 100: 0.4, 150: 0.1}, seed=7)]
    axes = Figure().subplots()
    result = result_of(study, cells)
    _panel(axes, result, "weapons", "malicious")
    assert axes.get_lines()[0].get_ydata() == pytest.approx([0.0, 0.3, 0.6, 0.1])
    low, high = (by(axes.collections[0].get_paths()[0].vertices[:, 1]) for by in (min, max))
    assert (low, high) == (0.0, 0.8)
    _panel(fresh := Figure().subplots(), result.model_copy(update={"cells": cells[:1]}), "weapons", "malicious")
    assert not fresh.collections
