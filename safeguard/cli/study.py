"""``safeguard study``: run a study's cells, print its tables."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import DIRECTORY, device_option, progress_option
from safeguard.cli.streams import unheard
from safeguard.progress import choose


@click.command()
@click.argument("name", metavar="NAME_OR_FILE")
@click.option("--out", type=DIRECTORY, required=True, help="Directory for models, certifications and tables.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Cells run side by side; they share the cores.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Cells to run, such as 'weapons/*'; may be repeated.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**31 - 1),
    multiple=True,
    help="Run every cell with this seed instead of its own; repeated, with each of them.",
)
@device_option
@progress_option
def study(
    name: str, out: Path, jobs: int, only: tuple[str, ...], seeds: tuple[int, ...], device: str, progress: str
) -> None:
    """Harden and certify every task of a study under every variant, and lay the results side by side.

    NAME_OR_FILE is a shipped study (see studies/) or a file. An interrupted study continues where it was when the same
    command is given again.
    """
    from safeguard.files import write_text
    from safeguard.policy.study import load_study
    from safeguard.study.curves import write_curves
    from safeguard.study.pictures import write_pictures
    from safeguard.study.rendering import markdown
    from safeguard.study.runner import run_study

    declared = load_study(name)
    result = run_study(declared, out, jobs=jobs, device=device, only=only, seeds=seeds, progress=choose(progress))
    text = markdown(result)
    write_text(out / "study.md", text)
    write_pictures(result, out)
    write_curves(result, out)
    with unheard():
        click.echo(text, nl=False)
