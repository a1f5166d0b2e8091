"""The simulations behind docs/statistics.md, smaller; the table itself must be there and hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import certification_errors as errors
from benchmarks.certification_errors import END, PAGE, PARTS, START, Row, markdown, written


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_promises_hold_in_a_thousand_certifications(part: Callable[[int], Iterator[Row]]) -> None:
    rows = list(part(1000))
    assert rows and [row.what for row in rows if not row.holds] == []
    assert all(row.runs >= 250 for row in rows)


def test_a_row_holds_where_its_interval_does_not_contradict_the_promise() -> None:
    def row(promise: errors.Promise, hits: int) -> bool:
        return Row("", promise, 0.05, hits, 10_000).holds

    assert row("at most", 0) and row("at most", 520) and not row("at most", 600)
    assert row("more than", 600) and not row("more than", 520)
    assert row("exactly", 520) and not row("exactly", 600) and not row("exactly", 400)


def test_worse_bounds_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "corrected_upper_bound", lambda k, n, alpha, sensitivity: k / n)
    wrong = [row for row in errors.seeds_that_were_run(2000) if not row.holds]
    assert len(wrong) == 2, "a model at the limit in one place or one bound passes on estimates"
    assert not all(row.holds for row in errors.seeds_that_were_not(2000))


def test_the_command_exits_with_one_where_a_promise_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Row("too often", "at most", 0.05, 100, 1000)
    for rows, code in (([broken], 1), ([Row("rarely", "at most", 0.05, 10, 1000)], 0)):
        monkeypatch.setattr(errors, "all_rows", lambda runs, rows=rows: rows)
        result = CliRunner().invoke(errors.main, ["--runs", "1000"])
        assert result.exit_code == code
        assert ("does NOT hold" in result.output) == (code == 1)


def test_writing_replaces_the_table_and_nothing_else() -> None:
    table = markdown([Row("first", "at most", 0.05, 1, 1000)])
    page = written(f"above\n{START}\nthe old table\n{END}\nbelow\n", table)
    assert page.startswith("above\n") and page.endswith("\nbelow\n") and "the old table" not in page
    assert "| first | at most 5.00% | 0.10% (" in page and "1,000 certifications" in page
    assert written(page, table) == page


def test_the_page_has_the_table_of_all_promises_and_they_hold() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    table, end, _ = rest.partition(END)
    assert end and "does NOT hold" not in table
    rows = errors.all_rows(250)
    shown = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.endswith("holds |")]
    assert shown == [row.what for row in rows], "run benchmarks/certification_errors.py --write"


def test_numbers_are_drawn_alike_every_time() -> None:
    assert list(errors.honest_models(250)) == list(errors.honest_models(250))
    assert np.array_equal(errors._dice("a", 1).random(3), errors._dice("a", 1).random(3))
    assert not np.array_equal(errors._dice("a", 1).random(3), errors._dice("a", 2).random(3))
