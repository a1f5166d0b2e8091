"""What a report says of a metric."""

from __future__ import annotations

from safeguard.results.record import Record


class MetricInfo(Record):
    """One metric of a policy."""

    title: str
    """For people: ``CLIP score``."""
    higher_is_better: bool
    line: str
    """Kind, weights and settings in one line."""
