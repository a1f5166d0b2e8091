"""Options and output that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from safeguard.progress import MODES, printable

DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or mps; auto takes the fastest there is."
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


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text, as wide as their widest cell; control characters removed."""
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
