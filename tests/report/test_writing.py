"""Writing, reading and rendering again; the schema file; the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeguard.cli.report import report as command
from safeguard.errors import UsageFault
from safeguard.report import writing
from safeguard.results import json_schema
from safeguard.results.report import Report
from tests.report import reports


@pytest.mark.parametrize("make", [reports.passing, reports.unsafe, reports.bare, reports.long_names])
def test_round_trip(make: Callable[[], Report], tmp_path: Path) -> None:
    report = make()
    written = writing.write_all(report, tmp_path)
    assert {name: path.name for name, path in written.items()} == {
        "json": "report.json",
        "html": "report.html",
        "markdown": "summary.md",
    }
    assert writing.load_report(tmp_path) == report


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    writing.write_all(reports.odd(), tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN literal: every reader copes
    loaded = writing.load_report(tmp_path)
    assert loaded.diagnostics is not None
    series = loaded.diagnostics.series["with a gap"]
    assert math.isnan(series[1]) and series[3] == math.inf


def test_truth_is_written_even_when_a_rendering_fails(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(Exception, match=r"report\.html"):
        writing.write_all(reports.passing(), tmp_path)
    assert writing.load_report(tmp_path) == reports.passing()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no report.json here"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "version None"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1}', "title: Field required"),
        ('{"version": NaN}', "not JSON"),
    ],
)
def test_broken_reports_are_explained(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageFault, match=says) as caught:
        writing.load_report(tmp_path)
    assert caught.value.fix and str(tmp_path) in caught.value.where


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b'{"version": "\xff\xfe"}')
    with pytest.raises(UsageFault):
        writing.load_report(tmp_path)


@pytest.mark.parametrize("name", json_schema.SCHEMAS)
def test_schema_files_are_up_to_date(name: str) -> None:
    assert json_schema.path(name).read_text(encoding="utf-8") == json_schema.generate(name), (
        "run `python -m safeguard.results.json_schema`"
    )


def test_command_renders_again_without_touching_the_truth(tmp_path: Path) -> None:
    writing.write_all(reports.failing(), tmp_path)
    truth = (tmp_path / "report.json").read_bytes()
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    (tmp_path / "summary.md").unlink()
    result = CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0  # a FAIL report renders fine: the verdict is not this command's
    assert (tmp_path / "report.html").read_text() == before
    assert (tmp_path / "summary.md").is_file() and (tmp_path / "report.json").read_bytes() == truth


def test_command_keeps_a_page_whose_pictures_are_gone(tmp_path: Path) -> None:
    writing.write_all(reports.failing(), tmp_path)
    (tmp_path / "report.html").write_text("with pictures")
    with pytest.raises(UsageFault, match=r"lose \d+ pictures: units/") as caught:
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert "--out" in caught.value.fix and (tmp_path / "report.html").read_text() == "with pictures"
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "again")], catch_exceptions=False)
    assert result.exit_code == 0 and (tmp_path / "again" / "report.html").is_file()


def test_command_formats(tmp_path: Path) -> None:
    writing.write_all(reports.passing(), tmp_path)
    (tmp_path / "report.html").unlink()
    result = CliRunner().invoke(command, [str(tmp_path), "--format", "json", "--format", "markdown"])
    assert json.loads(result.stdout)["verdict"] == "PASS"
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UsageFault, match="unknown reporter 'htm'"):
        CliRunner().invoke(command, [str(tmp_path), "--format", "htm"], catch_exceptions=False)
    with pytest.raises(UsageFault, match=r"no report\.json"):
        CliRunner().invoke(command, [str(tmp_path / "absent")], catch_exceptions=False)
