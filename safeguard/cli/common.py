"""Options and output that several verbs share."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeguard.progress import MODES, printable

DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda or cuda:N; auto takes the fastest there is."
)
progress_option = click.option(
    "--progress",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How progress is shown, on stderr.",
)


def offline_option(default: bool) -> Callable[[Any], Any]:
    """``--offline/--online``; hardening may fetch its base model, certification fetches nothing unless told to."""
    return click.option(
        "--offline/--online",
        default=default,
        show_default=True,
        help="Use only what is on this machine, or let a policy's base model be fetched.",
    )


class _Bytes(click.ParamType[int]):
    """``24GiB``, ``512 MiB``, ``16GB``: a size in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size; for example 24GiB", param, ctx)
        power = "KMGT".index(found[2].upper()) + 1
        return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


BYTES = _Bytes()


def gibibytes(size: int) -> str:
    """``5.5 GiB``."""
    return f"{size / 2**30:.1f} GiB"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text; on a terminal cells are wrapped to fit it, elsewhere a row is a line. No control characters."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=None if terminal else _UNBOUND, highlight=False
    )
    grid = Table(box=_DASHES, show_edge=False, pad_edge=False)
    for name in header:
        grid.add_column(_cell(name), overflow="fold")
    for row in rows:
        grid.add_row(*map(_cell, row))
    with console.capture() as printed:
        console.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines() if line.strip())


_UNBOUND = 1_000_000
"""Characters in a line of a pipe or a file."""
_DASHES = Box("    \n    \n -- \n    \n    \n    \n    \n    \n")
"""Spaces between columns, dashes below the header."""


def _cell(value: object) -> Text:
    """Literal text on one line."""
    return Text(printable(str(value)).replace("\n", " "))
