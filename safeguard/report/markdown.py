"""``summary.md``: the verdict on one screen, for the summary page of a CI job."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from safeguard.report import view
from safeguard.report.base import Reporter
from safeguard.report.templates import environment, visible
from safeguard.results import origins
from safeguard.results.report import Report

MAX_CELL = 240
MAX_SENTENCE = 20_000
MAX_CLAIMS = 60
"""With :data:`MAX_CELL` and :data:`MAX_SENTENCE` this keeps the summary far below the 1 MiB that CI services accept."""

_URGENCY = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "@<!-- -->"}
_ACTIVE = re.compile(r"[\\`*_{}\[\]#!|~$^=]|:(?=//)|(?<=www)\.|^[-+]|[&<>@]", re.IGNORECASE)


def escape(text: str) -> Markup:
    """One line of text that Markdown, its HTML, its tables and its automatic links and mentions leave alone."""
    return _escaped(text, MAX_CELL)


def whole(text: str) -> Markup:
    """The same for what must not be cut: what a PASS admits stands at the end of its sentence."""
    return _escaped(visible(text), MAX_SENTENCE)


def _escaped(text: str, most: int) -> Markup:
    line = " ".join(text.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return Markup(_ACTIVE.sub(lambda match: _HTML.get(match[0], "\\" + match[0]), line))


def render(report: Report, run_dir: Path) -> str:
    """The summary; failing claims stand first, and very long reports are cut with a count of what is left out."""
    claims = sorted(report.claims, key=lambda claim: _URGENCY[claim.verdict])
    template = environment(escape=escape).get_template("summary.md.j2")
    return template.render(
        report=report,
        whole=whole,
        whose=origins.policy(report.provenance),
        nonce=origins.nonce(report.provenance),
        coverage=view.coverage(report),
        level=view.level(report),
        attacker=view.attacker(report),
        applying=[control for control in report.controls if control.applies],
        claims=claims[:MAX_CLAIMS],
        left_out=len(claims) - len(claims[:MAX_CLAIMS]),
        failing=[control for control in report.controls if not control.passed],
        relearning=view.relearning,
    )


REPORTER = Reporter("summary.md", render)
