"""Writing and reading a run directory's report: ``report.json`` is the truth, and is computed again by its readers."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from safeguard.certify.consistency import contradictions
from safeguard.certify.stored import recomputed, stored_units
from safeguard.errors import UsageFault
from safeguard.files import write_text
from safeguard.registry import reporters
from safeguard.results.report import Report
from safeguard.wording import plural

TRUTH = "report.json"
DEFAULT = ("html", "markdown")
"""Reporters that every certification asks."""


def write_all(report: Report, run_dir: Path) -> dict[str, Path]:
    """Write ``report.json``, then what the default reporters make of it; returns the path of each format.

    When a rendering fails, ``report.json`` is already in place and ``safeguard report`` can render it later.
    """
    truth = run_dir / TRUTH
    write_text(truth, report.model_dump_json(indent=2) + "\n")
    return {"json": truth} | {name: write_format(name, report, run_dir) for name in DEFAULT}


def write_format(name: str, report: Report, run_dir: Path, out: Path | None = None) -> Path:
    """Render one registered format into the run directory, or into another one.

    Raises:
        UsageFault: no reporter has that name.
    """
    reporter = reporters.get(name)
    path: Path = (out or run_dir) / reporter.file
    write_text(path, reporter.render(report, run_dir))
    return path


def check_evidence(report: Report, run_dir: Path) -> None:
    """Refuse to replace a page that has pictures by one that would lack some.

    Raises:
        UsageFault: the run directory has a page but not all the contact sheets its report names.
    """
    page = run_dir / reporters.get("html").file
    missing = missing_evidence(report, run_dir)
    if missing and page.exists():
        raise UsageFault(
            f"this page would lose {plural(len(missing), 'picture')}: {missing[0]} is not in the run directory",
            fix="keep the page as it is, or write another one with --out DIR",
            where=str(page),
        )


def missing_evidence(report: Report, run_dir: Path) -> list[str]:
    """Contact sheets the report names that are not in the run directory, as relative paths."""
    named = [point.evidence for claim in report.claims for curve in claim.curves for point in curve.points]
    return [name for name in dict.fromkeys(named) if name is not None and not (run_dir / name).is_file()]


def load_report(run_dir: Path) -> Report:
    """Read ``report.json`` of a run directory, and compute it again: from its units, or from its own counts.

    Where the units lie beside it, everything is computed from them; where none is there, because the report was copied,
    bounds are compared with the counts, and the verdict with claims and controls.

    Raises:
        UsageFault: it is missing, not JSON, of another version, not a report, or it contradicts its own numbers or its
            units; the message says where.
    """
    report = parse_report(run_dir)
    if told := [*contradictions(report), *_against_units(report, run_dir)]:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise UsageFault(f"this report contradicts itself: {told[0]}{more}", fix=_AGAIN, where=str(run_dir / TRUTH))
    return report


def _against_units(report: Report, run_dir: Path) -> list[str]:
    stored = stored_units(report, run_dir)
    if not report.basis or stored.missing == len(report.run):
        return []
    return stored.problems or recomputed(report, stored.units)


def parse_report(run_dir: Path) -> Report:
    """Read ``report.json`` as it stands.

    Raises:
        UsageFault: it is missing, not JSON, of another version, or not a report.
    """
    path = run_dir / TRUTH
    if not path.is_file():
        raise UsageFault(
            f"there is no {TRUTH} here",
            fix="give the run directory of a finished `safeguard certify`; run it again to finish an interrupted one",
            where=str(run_dir),
        )
    try:
        value = from_json(path.read_bytes(), allow_inf_nan=False)
    except ValueError as error:
        raise UsageFault(f"this is not JSON: {error}", fix=_AGAIN, where=str(path)) from error
    version = value.get("version") if isinstance(value, dict) else None
    if version != 1:
        raise UsageFault(
            f"this report has version {version!r}, this safeguard reads version 1",
            fix="install the release of safeguard that wrote it",
            where=str(path),
        )
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageFault(f"{field}: {first['msg']}", fix=_AGAIN, where=str(path)) from error


_AGAIN = "the file was changed or damaged; run `safeguard certify` again, finished units are reused"
