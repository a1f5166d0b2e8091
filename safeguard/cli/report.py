"""``safeguard report``: render a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import DIRECTORY


@click.command("report")
@click.argument("run_dir", type=DIRECTORY)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("html", "markdown"),
    show_default=True,
    help="html, markdown, json (printed to standard output), or the name of an installed reporter; may be repeated.",
)
@click.option("--out", type=DIRECTORY, help="Directory to write into; by default RUN_DIR.")
def report(run_dir: Path, formats: tuple[str, ...], out: Path | None) -> None:
    """Render RUN_DIR/report.json again, without a GPU and without the model.

    The verdict is computed again, from the units where they are there and else from the report's own counts; a report
    that contradicts them is refused.
    """
    from safeguard.report.writing import TRUTH, check_evidence, load_report, write_format

    loaded = load_report(run_dir)
    if out is None and "html" in formats:
        check_evidence(loaded, run_dir)
    for name in dict.fromkeys(formats):
        if name == "json":
            click.echo((run_dir / TRUTH).read_text(encoding="utf-8"), nl=False)
        else:
            click.echo(str(write_format(name, loaded, run_dir, out)), err="json" in formats)
