"""``safeguard verify``: compute a finished certification again from its files."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import DIRECTORY
from safeguard.progress import printable


@click.command()
@click.argument("run_dir", metavar="RUN_DIR", type=DIRECTORY)
@click.argument("model", metavar="MODEL_DIR", type=DIRECTORY)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.pass_context
def verify(context: click.Context, run_dir: Path, model: Path, as_json: bool) -> None:
    """Compute every digest, row, bound and verdict of a finished certification again.

    Nothing is drawn, and neither a GPU nor the policy's files are needed. Each check is a line, each deviation a line
    below it. Exits with 0 when everything agrees and 1 when something does not.
    """
    from safeguard import api

    found = api.verify(run_dir, model)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        for check in found.checks:
            click.echo(printable(f"{'differs' if check.deviations else 'agrees ':7} {check.title}"))
            for deviation in check.deviations:
                click.echo(printable(f"        {deviation}"))
        said = "everything agrees" if found.agrees else "this is not what was certified"
        click.echo(printable(f"{said}; the report's verdict is {found.verdict}"))
    context.exit(0 if found.agrees else 1)
