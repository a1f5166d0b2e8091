"""Numbers in words: one way to write a rate, a duration or a moment, for every rendering."""

from __future__ import annotations

from datetime import UTC, datetime

NARROW = "\N{NARROW NO-BREAK SPACE}"
VARIANTS = "variants"
"""The axis of attacks that do one of several things, and not more and more of one."""
CONFIGURATIONS = "configurations"
"""The axis of attacks that try one fine-tune after the other, each from the released weights."""
NUMBERED = frozenset({VARIANTS, CONFIGURATIONS})
"""Axes whose efforts number what was done, and are no amount."""
ROLE_NAMES = {"hardened": "hardened", "unlearned": "unlearned only", "base": "base"}


def percent(rate: float) -> str:
    """A rate in [0, 1] as a percentage; two decimals below 10 %, so that 4.99 % is never written like 5 %."""
    if rate in (0.0, 1.0):
        return f"{rate * 100:.0f}{NARROW}%"
    return f"{rate * 100:.{2 if rate < 0.1 else 1}f}{NARROW}%"


def declared(rate: float) -> str:
    """A rate a person declared, without padding: ``5 %``, ``2.5 %``."""
    return f"{rate * 100:.6g}{NARROW}%"


def times(ratio: float) -> str:
    """A factor: ``4 ×``, ``2.5 ×``."""
    return f"{ratio:.2g}{NARROW}×" if ratio < 10 else f"{ratio:.0f}{NARROW}×"


def plural(count: int, noun: str, many: str = "") -> str:
    """``1 step``, ``2 steps``, ``1,200 steps``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def amount(effort: int, axis: str) -> str:
    """An effort on its axis: ``50 fine-tuning steps``, ``1 query`` for ``queries``."""
    one = f"{axis[:-3]}y" if axis.endswith("ies") else axis.removesuffix("s")
    return plural(effort, one, axis)


def when(effort: int, axis: str) -> str:
    """The state of a model after an effort: ``as released``, ``after 50 fine-tuning steps``, ``in variant 2``."""
    if effort and axis in NUMBERED:
        return f"in {axis.removesuffix('s')} {effort}"
    return f"after {amount(effort, axis)}" if effort else "as released"


def number(value: float) -> str:
    """A measured quantity with three significant digits."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}").replace("e\N{MINUS SIGN}", "e-")


def score(value: float) -> str:
    """A CLIP score: three decimals, like the margins it is held against."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def moment(stamp: str) -> str:
    """An ISO 8601 time as ``2026-01-31 18:05 UTC``; anything else as it stands."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return (when if when.tzinfo is None else when.astimezone(UTC)).strftime("%Y-%m-%d %H:%M UTC")
