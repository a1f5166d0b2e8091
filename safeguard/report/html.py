"""``report.html``: one self-contained file without scripts, for people."""

from __future__ import annotations

from pathlib import Path

from safeguard.report import charts, claim_charts, series, view
from safeguard.report.base import Reporter
from safeguard.report.bullets import bullets
from safeguard.report.templates import environment
from safeguard.report.tiles import tiles
from safeguard.results import origins
from safeguard.results.report import Report


def render(report: Report, run_dir: Path) -> str:
    """The whole page; evidence images are read from ``run_dir`` and embedded.

    An image that is missing or refused is named in the page; it never stops the rendering or changes the verdict.
    """
    concepts = view.concepts(report, run_dir)
    logged = series.read(report.diagnostics.series if report.diagnostics else {})
    template = environment(escape=str).get_template("report.html.j2")
    return template.render(
        report=report,
        whose=origins.policy(report.provenance),
        nonce=origins.nonce(report.provenance),
        coverage=view.coverage(report),
        level=view.level(report),
        attacker=view.attacker(report),
        tiles=tiles(report),
        concepts=concepts,
        charts={
            claim.anchor: claim_charts.of_claim(claim, report.relearned_rate)
            for concept in concepts
            for claim in concept.claims
        },
        bullets=bullets(report.claims),
        utility=view.utility(report),
        has_unlearned=bool(report.unlearned_utility),
        traces=[(line, charts.trace(f"trace-{place}", line)) for place, line in enumerate(logged) if line.meaning],
        sparks=[(line, charts.spark(f"spark-{place}", line)) for place, line in enumerate(logged) if not line.meaning],
        blurred=view.must_blur(report),
    )


REPORTER = Reporter("report.html", render)
