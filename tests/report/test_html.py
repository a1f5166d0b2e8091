"""``report.html``: complete, self-contained, readable by everybody, and deaf to what names try to say to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from markupsafe import escape

from safeguard.report import series
from safeguard.report.html import render
from safeguard.results import words
from safeguard.results.report import Depth, Report
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


Make = Callable[[], Report]


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Make], str]:
    """The page of a report with its evidence, rendered once."""

    @cache
    def rendered(make: Make) -> str:
        folder, report = tmp_path_factory.mktemp(make.__name__), make()
        reports.draw_evidence(report, folder)
        return render(report, folder)

    return rendered


@pytest.mark.parametrize("make", ALL)
def test_page_is_self_contained(make: Make, page_of: Callable[[Make], str]) -> None:
    html = page_of(make)
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
def test_page_is_accessible(make: Make, page_of: Callable[[Make], str]) -> None:
    html = page_of(make)
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


def test_every_figure_carries_title_and_description(page_of: Callable[[Make], str]) -> None:
    page = read(page_of(reports.passing))
    charts = [e for e in page.all("svg") if e.attributes.get("class", "").startswith("chart")]
    assert len(charts) == 14  # six claims, each for wide and for narrow screens, and two traces of hardening
    assert len(page.all("desc")) == len(charts)
    assert any("hardened: 0\N{NARROW NO-BREAK SPACE}% at 0" in e.text for e in page.all("desc"))


def test_how_hardening_went_is_drawn_where_it_was_logged(page_of: Callable[[Make], str]) -> None:
    html = page_of(reports.passing)
    assert "How hardening went" in html
    for name, meaning in series.TRACES.items():
        assert html.count(f'<p class="spark-name">{name}</p>') == 1 and meaning in html
    assert "How hardening went" not in page_of(reports.bare)


def test_says_the_verdict_in_words_first(page_of: Callable[[Make], str]) -> None:
    for make in (reports.passing, reports.failing, reports.inconclusive):
        report = make()
        body = page_of(make).split("<main", 1)[1]
        first = re.sub(r"<[^>]+>|\s+", " ", body.split("<section", 2)[1])
        assert report.verdict in first and report.sentence in first


def test_claims_and_controls_are_all_there(page_of: Callable[[Make], str]) -> None:
    report, html = reports.inconclusive(), page_of(reports.inconclusive)
    for claim in report.claims:
        assert claim.probe in html and claim.title in html and escape(words.reason(claim)) in html
    for control in report.controls:
        assert control.title in html and escape(words.control(control)) in html
    outcomes = re.findall(r"</svg>(passed|failed)</span>", html)
    assert outcomes.count("failed") == 1 and len(outcomes) == len(report.controls)
    for file, digest in report.provenance.files.items():
        assert file in html and digest in html


def test_missing_things_are_named_not_hidden(page_of: Callable[[Make], str], tmp_path: Path) -> None:
    html = page_of(reports.bare)
    for said in ("No claim was tested", "No control was run", "No benign subject was measured", "no record of how"):
        assert said in html
    odd = page_of(reports.odd)
    assert "not calibrated" in odd and "2 not finite" in odd and "removed 3 prompts" in odd
    assert "No checkpoint was evaluated" in odd and "nan" not in odd.lower().replace("nance", "")
    assert "not in the run directory any more" in render(reports.passing(), tmp_path)


def test_the_depth_of_an_erasure_stands_below_what_is_not_judged(tmp_path: Path) -> None:
    depth = Depth(probe="way-back", concept="weapons", base_rate=0.96, lambda50=None, furthest=0.75)
    page = render(reports.passing().model_copy(update={"depths": [depth]}), tmp_path)
    assert str(escape(f"Depth of the erasure, {words.depth(depth)}")) in page


def test_efforts_are_called_what_the_attack_counts(tmp_path: Path) -> None:
    lines = [
        reports.curve("hardened", {0: 0, 1: 0, 500: 1}, axis="queries"),
        reports.curve("base", {0: 97, 500: 98}, axis="queries"),
    ]
    html = render(reports.report([reports.claim("prompts", lines)]), tmp_path)
    text = re.sub(r"<[^>]+>", "", html.partition("</style>")[2].partition("Controls</h2>")[0])
    assert "after 500 queries" in text and "within 500 queries" in text and "Queries" in text
    assert not re.search(r"\bsteps?\b", text.replace("optimiser steps", "")), "but in the threat model"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_cannot_become_markup(payload: str, plain: list[tuple[str, tuple[str, ...]]], tmp_path: Path) -> None:
    html = render(reports.with_text(short(), payload), tmp_path)
    assert read(html).skeleton() == plain
    assert "1337" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)


def short() -> Report:
    """Both kinds of figures, and a concept declared unsafe."""
    report = reports.unsafe()
    return report.model_copy(update={"claims": [report.claims[0], report.claims[-1]]})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[str, ...]]]:
    """What the page is made of where no text attacks it."""
    return read(render(reports.with_text(short(), "plain"), tmp_path_factory.mktemp("plain"))).skeleton()
