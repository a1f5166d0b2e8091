"""Every reporter: it shows what the report says, and nothing that its text tries to say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from safeguard.registry import reporters
from safeguard.report.base import Reporter
from safeguard.report.writing import TRUTH, write_format
from safeguard.results.report import Report
from tests.report import reports

MAKERS = [reports.passing, reports.failing, reports.unsafe, reports.bare, reports.odd, reports.long_names]
HOSTILE = "<script>alert(1)</script>{{ 7 * 191 }}\x1b[2J\u202e"
"""Markup, a template, an escape sequence, a change of direction."""


@pytest.fixture(params=reporters.names())
def reporter(request: pytest.FixtureRequest) -> Reporter:
    found: Reporter = reporters.get(request.param)
    return found


@pytest.mark.parametrize("make", MAKERS)
def test_it_renders_any_report_the_same_way_every_time_and_writes_nothing(
    reporter: Reporter, make: Callable[[], Report], tmp_path: Path
) -> None:
    report = make()
    text = reporter.render(report, tmp_path)
    assert text and text == reporter.render(report, tmp_path)
    assert report == make() or report.model_dump_json() == make().model_dump_json()  # NaN is not equal to itself
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_it_decides_nothing(
    reporter: Reporter, verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"], tmp_path: Path
) -> None:
    """The verdict it shows is the report's, whatever the rows beside it say."""
    report = reports.bare().model_copy(update={"verdict": verdict, "sentence": "Said as it was written"})
    text = reporter.render(report, tmp_path)
    first = re.search(r"\b(PASS|FAIL|INCONCLUSIVE)\b", text)
    assert first is not None and first[0] == verdict and "Said as it was written" in text


def test_text_stays_text(reporter: Reporter, tmp_path: Path) -> None:
    text = reporter.render(reports.with_text(reports.unsafe(), HOSTILE), tmp_path)
    assert "script" in text, "it shows no text at all"
    assert "<script" not in text and "1337" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_its_file_is_its_own(reporter: Reporter, tmp_path: Path) -> None:
    files = [reporters.get(name).file for name in reporters.names()]
    assert files.count(reporter.file) == 1 and reporter.file != TRUTH
    assert Path(reporter.file).name == reporter.file
    (name,) = (name for name in reporters.names() if reporters.get(name) is reporter)
    assert write_format(name, reports.passing(), tmp_path) == tmp_path / reporter.file
    assert [path.name for path in tmp_path.iterdir()] == [reporter.file]


def test_no_reporter_needs_torch() -> None:
    code = "import sys\nfrom safeguard.registry import reporters\n[reporters.get(name) for name in reporters.names()]\n"
    code += "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
