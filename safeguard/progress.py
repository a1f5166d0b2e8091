"""One progress reporter for everything long: bars on a terminal, sparse lines elsewhere, or nothing.

Progress goes to stderr, results to stdout, so that a command can be piped. A task may be opened inside another one::

    with progress.task("erase weapons", total=200) as task:
        for step in range(200):
            ...
            task.update(step + 1, loss=0.012)
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from safeguard.errors import UsageFault

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Mode = Literal["auto", "rich", "plain", "none"]
MODES: tuple[Mode, ...] = ("auto", "rich", "plain", "none")
PLAIN_INTERVAL = 10.0
"""Seconds between two lines of one task where there is no terminal: a log of an hour stays readable."""


class Task(Protocol):
    """Handle of one running task."""

    def update(self, done: int, **facts: float | str) -> None:
        """Say how many of the task's ``total`` items are done, with what is worth knowing (``loss=0.012``)."""


class Progress(Protocol):
    """What long work reports to."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """A context in which ``total`` items of work are done, of which an earlier run may have ``done`` some."""

    def note(self, text: str) -> None:
        """A line that stays: something decided, skipped or found."""


def printable(text: str) -> str:
    """The text without control and direction characters, which could repaint a terminal; newlines are kept."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _facts(facts: dict[str, float | str]) -> str:
    values = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in facts.items()}
    return printable(" · ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))


class _Silence:
    def update(self, done: int, **facts: float | str) -> None:
        pass


class SilentProgress:
    """Reports nothing: the default of the Python API."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _Silence()

    def note(self, text: str) -> None:
        pass


class _Lines:
    """One task as lines: one when it starts, one when it ends, and between them one every ``interval`` seconds."""

    def __init__(
        self,
        title: str,
        total: int,
        done: int,
        write: Callable[[str], None],
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self.title, self.total, self.done, self.facts = title, total, done, ""
        self._first = done
        self._write, self._interval, self._clock = write, interval, clock
        self._started = self._spoke = clock()
        self._say()

    def update(self, done: int, **facts: float | str) -> None:
        self.done, self.facts = done, _facts(facts)
        now = self._clock()
        if self._first < done < self.total and now - self._spoke >= self._interval:
            self._spoke = now
            pace = (now - self._started) / (done - self._first)
            self._say(f"about {duration(pace * (self.total - done))} left")

    def close(self, ending: str) -> None:
        self._say(f"{ending} after {duration(self._clock() - self._started)}")

    def _say(self, ending: str = "") -> None:
        self._write(" · ".join(part for part in (f"{self.title} {self.done}/{self.total}", self.facts, ending) if part))


class PlainProgress:
    """Lines for logs and pipes.

    Args:
        stream: where they go; stderr when None.
        interval: least seconds between two lines of one task.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval: float = PLAIN_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._interval, self._clock = stream, interval, clock

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        lines = _Lines(printable(title), total, done, self.note, self._interval, self._clock)
        try:
            yield lines
        except BaseException:
            lines.close("stopped")
            raise
        lines.close("done")

    def note(self, text: str) -> None:
        with suppress(OSError):  # whoever listened went away; the work goes on
            print(printable(text), file=self._stream or sys.stderr, flush=True)


class _Bar:
    def __init__(self, bars: Bars, bar: TaskID) -> None:
        self._bars, self._bar = bars, bar

    def update(self, done: int, **facts: float | str) -> None:
        self._bars.update(self._bar, completed=done, facts=_facts(facts))


class RichProgress:
    """Bars on a terminal; an outermost task leaves one line behind when it ends."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=Console(file=stream or sys.stderr),
            transient=True,
        )
        self._depth = 0

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        title = printable(title)
        started = time.monotonic()
        bar = self._bars.add_task(title, total=total, completed=done, facts="")
        self._depth += 1
        self._bars.start()
        ending = "stopped"
        try:
            yield _Bar(self._bars, bar)
            ending = "done"
        finally:
            self._depth -= 1
            self._bars.remove_task(bar)
            if not self._depth:
                self._bars.stop()
                self.note(f"{title} · {ending} after {duration(time.monotonic() - started)}")

    def note(self, text: str) -> None:
        self._bars.console.print(printable(text), markup=False, highlight=False)


def choose(mode: str) -> Progress:
    """The reporter of that mode; ``auto`` draws bars on a terminal and writes lines in CI and into files.

    Raises:
        UsageFault: no such mode.
    """
    if mode not in MODES:
        raise UsageFault(f"unknown progress mode {mode!r}", fix=f"known: {', '.join(MODES)}")
    if mode == "auto":
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
        mode = "rich" if terminal else "plain"
    if mode == "none":
        return SilentProgress()
    return RichProgress() if mode == "rich" else PlainProgress()
