"""``report.html``: one self-contained file without scripts, for people."""

from __future__ import annotations

from pathlib import Path

from safeguard.report import curves, view
from safeguard.report.base import Reporter
from safeguard.report.templates import environment
from safeguard.results.report import Report


def render(report: Report, run_dir: Path) -> str:
    """The whole page; evidence images are read from ``run_dir`` and embedded.

    An image that is missing or refused is named in the page; it never stops the rendering or changes the verdict.
    """
    diagnostics = report.diagnostics.series if report.diagnostics else {}
    traces = curves.traces(diagnostics)
    drawn = {trace.name for trace in traces}
    template = environment(escape=str).get_template("report.html.j2")
    return template.render(
        report=report,
        coverage=view.coverage(report),
        tiles=view.tiles(report),
        concepts=view.concepts(report, run_dir),
        bullets=curves.bullets(report.claims),
        utility=view.utility(report),
        has_unlearned=bool(report.unlearned_utility),
        traces=traces,
        sparks=[(name, curves.sparkline(values)) for name, values in diagnostics.items() if name not in drawn],
        blurred=view.must_blur(report),
    )


REPORTER = Reporter("report.html", render)
