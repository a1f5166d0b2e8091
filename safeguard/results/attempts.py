"""``attempts.jsonl``: what was begun and what came of it, so that trying until it passes stays visible.

The log is kept twice: in the run directory, and in the cache under a key of the base model and the concepts, whatever
model was certified and wherever. Each line holds the sha256 of the line before, so that one taken out or changed shows;
lines taken off the end show because the other log has them. Who can write into both can remove both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import ValidationError

from safeguard.cache import address, cache_dir
from safeguard.errors import UsageFault
from safeguard.files import atomic_path, check_writable
from safeguard.results.provenance import Attempt
from safeguard.results.record import Record, Verdict
from safeguard.wording import plural

FILE = "attempts.jsonl"
FIRST = "0" * 64
"""What the first line of a log has in the place of a digest."""


class Entry(Record):
    """One line of a log."""

    previous: str
    """sha256 (hexadecimal) of the line before, without its end."""
    event: Literal["begun", "finished"]
    subject: str
    """Base model and concepts (:func:`subject`)."""
    place: str
    """The run directory, as a digest of its path."""
    model: str
    policy: str
    nonce: str
    started: str
    """ISO 8601, UTC."""
    verdict: Verdict | None
    """Of a finished one."""


def subject(base_digest: str, prompts: Mapping[str, Sequence[str]]) -> str:
    """What attempts are filed under: the base model and the concepts, by name and prompts."""
    return address({"base": base_digest, "concepts": {name: list(texts) for name, texts in prompts.items()}})


@dataclass(frozen=True)
class Log:
    """One of the two files."""

    path: Path
    name: str
    """In messages."""

    def lines(self) -> list[bytes]:
        """As they are; none when there is no file.

        Raises:
            UsageFault: it cannot be read.
        """
        try:
            return [line for line in self.path.read_bytes().split(b"\n") if line]
        except FileNotFoundError:
            return []
        except OSError as error:
            fix = "check what lies there, and its permissions"
            raise UsageFault(f"cannot be read: {error.strerror}", fix=fix, where=str(self.path)) from error

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All entries, and what is wrong with the chain, in words."""
        entries, problems, previous = [], [], FIRST
        for number, line in enumerate(self.lines(), start=1):
            entry = _entry(line)
            if entry is None:
                problems.append(f"line {number} of {self.name} cannot be read")
            else:
                entries.append(entry)
                if entry.previous != previous:
                    problems.append(
                        f"line {number} of {self.name} does not follow the line before it: something was taken out or "
                        "changed"
                    )
            previous = hashlib.sha256(line).hexdigest()
        return entries, problems

    def repair(self) -> list[str]:
        """Put a log with lines that cannot be read aside, and go on with the others; says so."""
        if not self.path.exists():
            return []
        with self._held():
            lines = self.lines()
            readable = [line for line in lines if _entry(line) is not None]
            if len(readable) == len(lines):
                return []
            whole = self.path.read_bytes()
            aside = self.path.with_name(f"{self.path.name}.damaged-{hashlib.sha256(whole).hexdigest()[:8]}")
            self._write(aside, whole)
            self._write(self.path, b"".join(line + b"\n" for line in readable))
        lost = plural(len(lines) - len(readable), "line")
        return [f"{lost} of {self.name} could not be read; the file as it was is kept as {aside.name}"]

    def append(self, entry: Entry) -> str:
        """Add a line, flushed to disk; returns its sha256."""
        with self._held():
            lines = self.lines()
            previous = hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST
            line = entry.model_copy(update={"previous": previous}).model_dump_json().encode()
            self._write(self.path, b"".join(each + b"\n" for each in [*lines, line]))
        return hashlib.sha256(line).hexdigest()

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """No other process appends meanwhile."""
        check_writable(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry.model_validate_json(line)
    except ValidationError:
        return None


@dataclass(frozen=True)
class History:
    """Both logs, and what they say of one subject from the point of view of one run directory."""

    run_dir: Path
    subject: str

    @property
    def logs(self) -> tuple[Log, Log]:
        """That of the run directory, and that of the cache."""
        kept = cache_dir() / "attempts" / f"{self.subject}.jsonl"
        return Log(self.run_dir / FILE, f"{FILE} in the run directory"), Log(kept, "the cache's log of attempts")

    @property
    def place(self) -> str:
        """The run directory in the cache's log."""
        return hashlib.sha256(str(self.run_dir.resolve()).encode()).hexdigest()[:16]

    def read(self) -> tuple[list[Entry], list[str]]:
        """Every entry on the subject that either log has, oldest first, and what is wrong with the logs, in words."""
        here, there = self.logs
        problems = [*here.repair(), *there.repair()]
        own, told = here.entries()
        kept, more = there.entries()
        own = [entry for entry in own if entry.subject == self.subject]
        found = {_identity(entry): entry for entry in [*own, *kept]}
        own_ids, kept_ids = set(map(_identity, own)), set(map(_identity, kept))
        of_here = {_identity(entry) for entry in kept if entry.place == self.place}
        problems += [*told, *more]
        if lost := len(of_here - own_ids):
            problems.append(f"{here.name} lacks {plural(lost, 'line')} that the cache has: it was cut or removed")
        if lost := len(own_ids - kept_ids):
            problems.append(f"{there.name} lacks {plural(lost, 'line')} that the run directory has: it was cleared")
        return sorted(found.values(), key=lambda entry: (entry.started, entry.event)), problems

    def of_this_run(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of this run directory: in its own log, which may have been moved with it, or made at its path."""
        own = set(map(_identity, self.logs[0].entries()[0]))
        return [entry for entry in entries if entry.place == self.place or _identity(entry) in own]

    def add(self, entry: Entry) -> str:
        """Append to both logs; returns the sha256 of the run directory's line."""
        here, there = self.logs
        there.append(entry)
        return here.append(entry)


def _identity(entry: Entry) -> str:
    return entry.model_dump_json(exclude={"previous"})


def attempts(entries: Sequence[Entry], *, unless: str = "") -> list[Attempt]:
    """Certifications that were finished, and those that were begun and never finished, oldest first.

    Args:
        unless: a nonce that is being worked on, whose beginnings are not unfinished attempts.
    """
    finished = {(entry.model, entry.policy, entry.nonce) for entry in entries if entry.event == "finished"}
    told: set[tuple[str, str, str]] = set()
    found = []
    for entry in entries:
        key = (entry.model, entry.policy, entry.nonce)
        if entry.event == "begun" and (key in finished | told or entry.nonce == unless):
            continue
        told.add(key)
        found.append(
            Attempt(
                started=entry.started,
                verdict=entry.verdict,
                policy_digest=entry.policy,
                model_digest=entry.model,
                nonce=entry.nonce,
            )
        )
    return found
