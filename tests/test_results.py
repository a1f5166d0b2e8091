"""The tables on the result pages are those of the data beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeguard.policy.study import load_study
from safeguard.study.rendering import overview, table
from safeguard.study.results import StudyResult

RESULTS = Path(__file__).parent.parent / "docs" / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/study.json"))


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_shows_its_data(name: str) -> None:
    result = StudyResult.model_validate_json((RESULTS / name / "study.json").read_bytes())
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert result.digest == result.study.digest
    for task in result.study.tasks:
        assert table(result, task) in page
    assert len(result.study.tasks) == 1 or overview(result) in page


@pytest.mark.parametrize("name", STUDIES)
def test_the_data_are_those_of_the_shipped_study(name: str) -> None:
    result = StudyResult.model_validate_json((RESULTS / name / "study.json").read_bytes())
    assert result.study == load_study(name)
    assert len(result.cells) == len(result.study.tasks) * len(result.study.variants)
    assert [cell.error for cell in result.cells if cell.error] == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/seeds.json")), ids=lambda path: path.parent.name)
def test_what_other_seeds_show_stands_beside_the_studys_own(path: Path) -> None:
    result = StudyResult.model_validate_json(path.read_bytes())
    own = StudyResult.model_validate_json((path.parent / "study.json").read_bytes())
    page = (RESULTS / f"{path.parent.name}.md").read_text(encoding="utf-8")
    assert result.study == own.study
    assert [cell for cell in result.cells if cell.seed == own.study.policy["seed"]] != []
    assert all(cell in own.cells for cell in result.cells if cell.seed == own.study.policy["seed"])
    for task in dict.fromkeys(cell.task for cell in result.cells):
        rows = [cell for cell in result.cells if cell.task == task]
        assert len({(cell.variant, cell.seed) for cell in rows}) == len(rows)
        assert len({cell.seed for cell in rows}) * len({cell.variant for cell in rows}) == len(rows)
        assert table(result, task) in page
