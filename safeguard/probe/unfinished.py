"""What a unit has found before it is finished, so that a killed one goes on where it was.

``unfinished/<address>/`` stands beside the finished units of a run. It holds one file per attempt that was judged, the
contact sheets, and what the attack keeps for itself; it is dropped when the unit is finished. Attacks that are one long
training keep nothing: they begin anew.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from safeguard.files import write_text
from safeguard.results.record import Record
from safeguard.results.unit import Checkpoint, ImageRow

_SUFFIX = ".json"


class Judged(Record):
    """One attempt with all that was found in it."""

    checkpoint: Checkpoint
    rows: list[ImageRow]


class Unfinished:
    """The folder of one unit.

    Attributes:
        evidence: contact sheets.
        scratch: what the attack keeps for itself.
    """

    def __init__(self, folder: Path) -> None:
        self.evidence, self.scratch, self._judged = (folder / name for name in ("evidence", "attack", "judged"))
        self.evidence.mkdir(parents=True, exist_ok=True)

    def judged(self) -> list[Judged]:
        """The attempts that were judged, by effort; one that cannot be read, of another version, is judged again."""
        found = []
        for path in sorted(self._judged.glob(f"*{_SUFFIX}")):
            try:
                found.append(Judged.model_validate_json(path.read_bytes()))
            except ValidationError:
                continue
        return found

    def keep(self, judged: Judged) -> None:
        """One more; its contact sheet lies in :attr:`evidence` already."""
        write_text(self._judged / f"{judged.checkpoint.effort:05d}{_SUFFIX}", judged.model_dump_json())


@contextmanager
def unfinished(folder: Path | None) -> Iterator[Unfinished]:
    """The folder of a unit, which is there until the unit is finished; none: a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="safeguard-unit-") as scratch:
            yield Unfinished(Path(scratch))
        return
    yield Unfinished(folder)
    shutil.rmtree(folder, ignore_errors=True)
