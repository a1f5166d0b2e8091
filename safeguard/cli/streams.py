"""Standard output and error as they are found: what they cannot show, or nobody reads, must not change an exit code."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ESCAPED = "safeguard.escaped"
"""Error handler: a character that a stream cannot show is written as in JSON, so that JSON stays what it is."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


def prepare() -> None:
    """Make both streams take any text; one that is closed swallows what it is given."""
    codecs.register_error(_ESCAPED, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as we run)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def shows(text: str) -> bool:
    """Whether standard output has all characters of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def discard(stream: TextIO) -> None:
    """Send what is still to be written to nowhere; without this Python complains again while it shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def unheard() -> Iterator[None]:
    """What is said inside is in files as well: if nobody hears it, or a disk behind it is full, nothing is lost."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
