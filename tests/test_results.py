"""The tables on the result pages are those of the data beside them; a page says when its study has changed since."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safeguard.policy.study import load_study
from safeguard.study.rendering import overview, table
from safeguard.study.results import StudyResult

EARLIER = "These are the results of an earlier version of the study (digest {})."
"""What a page says whose data are not those of the shipped study; the tables' meaning is not touched by it."""
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
def test_every_cell_of_the_study_is_there_and_worked(name: str) -> None:
    result = StudyResult.model_validate_json((RESULTS / name / "study.json").read_bytes())
    assert result.study.name == name
    assert len(result.cells) == len(result.study.tasks) * len(result.study.variants)
    assert [cell.error for cell in result.cells if cell.error] == []


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_says_when_it_is_of_an_earlier_version_of_the_study(name: str) -> None:
    result = StudyResult.model_validate_json((RESULTS / name / "study.json").read_bytes())
    page = " ".join((RESULTS / f"{name}.md").read_text(encoding="utf-8").split())
    wanted = [] if result.digest == load_study(name).digest else [EARLIER.format(result.digest[:12])]
    assert re.findall(r"These are the results of an earlier version[^.]*\.", page) == wanted


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
