"""A finished certification and a model directory, for :mod:`safeguard.certify.verification`."""

from __future__ import annotations

from pathlib import Path

from safeguard.certify.basis import policy_and_suite
from safeguard.certify.verification import Finished
from safeguard.errors import UsageFault
from safeguard.io.manifest import difference, manifest, model_digest
from safeguard.probe.units import schedules
from safeguard.report.writing import TRUTH, parse_report
from safeguard.results.verification import Verification


def check(run_dir: Path, model_dir: Path) -> Verification:
    """Compute everything again.

    Raises:
        UsageFault: there is no readable report, or it embeds no policy and suite.
        ModelFault: the model directory cannot be read.
    """
    report = parse_report(run_dir)
    if report.integrity is None or not report.basis:
        raise UsageFault(
            "this report embeds neither policy nor digests of its units, so nothing can be computed again",
            fix="certify the model again with this version",
            where=str(run_dir / TRUTH),
        )
    _, suite = policy_and_suite(report)
    files = manifest(model_dir)
    return Finished(
        report=report,
        run_dir=run_dir,
        changes=difference(report.provenance.files, files),
        model_digest=model_digest(model_dir, files),
        schedules=schedules(suite),
    ).verify()
