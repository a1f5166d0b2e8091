"""``report.html``: complete, self-contained, readable by everybody, and deaf to what names try to say to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from safeguard.report import curves
from safeguard.report.html import render
from safeguard.results.report import Report
from tests.report import reports
from tests.report.pages import read

ALL = [
    reports.passing,
    reports.failing,
    reports.inconclusive,
    reports.unsafe,
    reports.bare,
    reports.odd,
    reports.long_names,
]
PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" style="background:url(//evil.example)',
    "javascript:alert(1)",
    "<!-- -->]]><![CDATA[",
    "{{ 7 * 191 }}{% raw %}{# x #}",
    "{{ ''.__class__.__mro__ }}",
    "<details open ontoggle=alert(1)>",
    "&lt;script&gt;&#60;b&#62;",
    "<base href=//evil.example>",
    "\x00<b\x1b>\u202e",
]


@pytest.mark.parametrize("make", ALL)
def test_page_is_self_contained(make: Callable[[], Report], tmp_path: Path) -> None:
    report = make()
    reports.draw_evidence(report, tmp_path)
    html = render(report, tmp_path)
    page = read(html)
    policy = [e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert [e.attributes["content"] for e in policy] == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {e.tag for e in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form", "video"}
    assert all(e.attributes["href"].startswith("#") for e in page.elements if "href" in e.attributes)
    assert all(
        e.attributes["src"].startswith("data:image/webp;base64,") for e in page.elements if "src" in e.attributes
    )
    assert not re.search(r"url\(|@import|https?://", html)


@pytest.mark.parametrize("make", ALL)
def test_page_is_accessible(make: Callable[[], Report], tmp_path: Path) -> None:
    report = make()
    reports.draw_evidence(report, tmp_path)
    html = render(report, tmp_path)
    page = read(html)
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    named = " ".join(e.attributes.get("aria-labelledby", "") for e in page.elements).split()
    targets = [e.attributes["href"][1:] for e in page.all("a")]
    assert set(named) | set(targets) <= set(ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(e.attributes.get("scope") in ("col", "row") for e in page.all("th"))
    assert all(e.attributes["alt"].strip() for e in page.all("img"))
    for svg in page.all("svg"):
        assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["role"] == "img"
    assert html.count("<h1") == 1


def test_every_figure_carries_title_and_description(tmp_path: Path) -> None:
    page = read(render(reports.passing(), tmp_path))
    charts = [e for e in page.all("svg") if e.attributes.get("class", "").startswith("chart")]
    assert len(charts) == 14  # six claims, each for wide and for narrow screens, and two traces of hardening
    assert len(page.all("desc")) == len(charts)
    assert any("hardened: 0\N{NARROW NO-BREAK SPACE}% at 0" in e.text for e in page.all("desc"))


def test_how_hardening_went_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    html = render(reports.passing(), tmp_path)
    assert "How hardening went" in html
    for name, meaning in curves.TRACES.items():
        assert html.count(f'<p class="spark-name">{name}</p>') == 1 and meaning in html
    assert "How hardening went" not in render(reports.bare(), tmp_path)


def test_says_the_verdict_in_words_first(tmp_path: Path) -> None:
    for report in (reports.passing(), reports.failing(), reports.inconclusive()):
        body = render(report, tmp_path).split("<main", 1)[1]
        first = re.sub(r"<[^>]+>|\s+", " ", body.split("<section", 2)[1])
        assert report.verdict in first and report.sentence in first


def test_claims_and_controls_are_all_there(tmp_path: Path) -> None:
    report = reports.inconclusive()
    html = render(report, tmp_path)
    for claim in report.claims:
        assert claim.probe in html and claim.title in html and claim.reason in html
    for control in report.controls:
        assert control.title in html and control.measured in html
    outcomes = re.findall(r"</svg>(passed|failed)</span>", html)
    assert outcomes.count("failed") == 1 and len(outcomes) == len(report.controls)
    for file, digest in report.provenance.files.items():
        assert file in html and digest in html


def test_missing_things_are_named_not_hidden(tmp_path: Path) -> None:
    html = render(reports.bare(), tmp_path)
    for words in ("No claim was tested", "No control was run", "No benign subject was measured", "no record of how"):
        assert words in html
    odd = render(reports.odd(), tmp_path)
    assert "not calibrated" in odd and "2 not finite" in odd and "removed 3 prompts" in odd
    assert "No checkpoint was evaluated" in odd and "nan" not in odd.lower().replace("nance", "")
    assert "not in the run directory any more" in render(reports.passing(), tmp_path)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_cannot_become_markup(payload: str, tmp_path: Path) -> None:
    report = reports.unsafe()
    plain = read(render(reports.with_text(report, "plain"), tmp_path))
    html = render(reports.with_text(report, payload), tmp_path)
    attacked = read(html)
    assert attacked.skeleton() == plain.skeleton()
    assert "1337" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)
