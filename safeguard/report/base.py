"""What every reporter is: a rendering of ``report.json``, and the name of its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safeguard.results.report import Report


@dataclass(frozen=True)
class Reporter:
    """One way to show a report; it reads the report, decides nothing, and escapes all text.

    Attributes:
        file: name of what it writes into a run directory.
        render: the content, from the report and its run directory; it writes nothing and needs no torch.
    """

    file: str
    render: Callable[[Report, Path], str]
