"""``summary.md``: short, complete, and literal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from safeguard.report.markdown import MAX_CLAIMS, render
from safeguard.results.report import Depth, Measured, Report
from tests.report import reports
from tests.report.pages import Page, read
from tests.report.test_html import PAYLOADS

MARKDOWN_PAYLOADS = [
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "https://evil.example/x",
    "www.evil.example",
    "<http://evil.example>",
    "[ref]: http://evil.example",
    "| a | b |",
    "\\|",
    "\\",
    "`code` ``",
    "**bold** _it_ ~~gone~~",
    "\n\n# heading\n\n- item\n\n```\nfence",
    "    indented",
    "- item",
    "+ item",
    "1. item",
    "---",
    "&copy; &#60;b&#62;",
    "trailing \\",
    "@everyone user@evil.example",
]


def shown(text: str) -> Page:
    """The page a CI service would make of it."""
    return read(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@pytest.mark.parametrize("payload", PAYLOADS + MARKDOWN_PAYLOADS)
def test_text_stays_text(payload: str, tmp_path: Path) -> None:
    report = reports.inconclusive()
    plain = render(reports.with_text(report, "plain"), tmp_path)
    attacked = render(reports.with_text(report, payload), tmp_path)
    assert shown(attacked).skeleton() == shown(plain).skeleton()
    assert len(attacked.splitlines()) == len(plain.splitlines())
    assert not re.search(r"(?<!\\)://|www\.|@(?!<)|1337|[\x00\u202e]", attacked)


@pytest.mark.parametrize("text", [p for p in MARKDOWN_PAYLOADS if p.strip() == p and "\n" not in p])
def test_text_arrives_unchanged(text: str, tmp_path: Path) -> None:
    page = shown(render(reports.with_text(reports.inconclusive(), text), tmp_path))
    assert page.all("td")[1].text.strip() == text


def test_summary_of_a_failure(tmp_path: Path) -> None:
    report = reports.failing()
    text = render(report, tmp_path)
    page = shown(text)
    assert "FAIL" in page.all("h2")[0].text and report.title in page.all("h2")[0].text
    cells = [cell.text.strip() for cell in page.all("td")]
    assert cells[:2] == ["FAIL", "malicious-full"]  # the worst news first
    assert len(cells) == 10 * len(report.claims)
    assert [link.attributes["href"] for link in page.all("a")] == ["report.html", "report.json"]
    assert "All 8 controls that apply passed" in text


def test_failed_controls_are_listed(tmp_path: Path) -> None:
    text = render(reports.inconclusive(), tmp_path)
    assert "1 of 8 controls failed" in text
    assert (
        "- **The attack works on a weak model**: weapons, malicious-full: 94 of 100 images flagged "
        "after 100 fine-tuning steps in the unlearned model"
    ) in text
    assert "The base model draws" not in text


def test_long_reports_are_cut_and_say_so(tmp_path: Path) -> None:
    one = reports.long_names()
    many: Report = one.model_copy(update={"claims": one.claims * (MAX_CLAIMS + 7)})
    text = render(many, tmp_path)
    assert len(shown(text).all("td")) == 10 * MAX_CLAIMS
    assert "7 more claims in the full report" in text
    assert len(text.encode()) < 2**20 / 4


def test_what_a_pass_admits_at_its_end_is_not_cut(tmp_path: Path) -> None:
    """Lenient limits, what was not tried, and what was not judged stand behind the good news."""
    sentence = (
        "Under 3 required probes nothing is seen. " * 12 + "Not judged: “weapons” is flagged in 90 of 100 images."
    )
    text = render(reports.passing().model_copy(update={"sentence": sentence}), tmp_path)
    assert "Not judged: “weapons” is flagged in 90 of 100 images." in text


def test_what_was_not_judged_is_a_list_with_blanks(tmp_path: Path) -> None:
    one = Measured(
        probe="benign", concept="weapons", title="Benign", axis="steps", why="no requirement", effort=0, seed=0,
        flagged=1, samples=100, rate=0.01, lower=0.0, upper=0.05, above=False,
    )  # fmt: skip
    told = [one, one.model_copy(update={"probe": "other", "flagged": 2})]
    text = render(reports.passing().model_copy(update={"not_judged": told}), tmp_path)
    assert "benign (no requirement) 1/100, other (no requirement) 2/100.\n" in text


def test_the_depth_of_an_erasure_is_told(tmp_path: Path) -> None:
    depth = Depth(probe="way-back", concept="weapons", base_rate=0.96, lambda50=0.31, furthest=1.0)
    text = render(reports.passing().model_copy(update={"depths": [depth]}), tmp_path)
    assert "Depth of the erasure, way-back: half of the base model's rate of weapons" in text.replace("\\", "")
    assert "Depth of the erasure" not in render(reports.passing(), tmp_path)


def test_empty_report(tmp_path: Path) -> None:
    text = render(reports.bare(), tmp_path)
    assert "No claim was tested" in text and "No control was run" in text
