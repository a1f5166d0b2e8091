"""``safeguard certify``: attack a model, print the verdict, exit with its code."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import DIRECTORY, FILE, device_option, offline_option, progress_option
from safeguard.progress import choose, printable


@click.command()
@click.argument("model", metavar="MODEL_DIR", type=DIRECTORY)
@click.option("--policy", type=FILE, help="Policy to test against; by default the one the model was hardened with.")
@click.option("--out", type=DIRECTORY, help="Run directory; by default MODEL_DIR with .certification appended.")
@device_option
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be run and what it can show; run nothing.")
@offline_option(True)
@progress_option
@click.pass_context
def certify(
    context: click.Context,
    model: Path,
    policy: Path | None,
    out: Path | None,
    device: str,
    only_plan: bool,
    offline: bool,
    progress: str,
) -> None:
    """Attack a model and say whether it meets its policy.

    Exits with 0 for PASS, 1 for FAIL and 3 for INCONCLUSIVE. Work that the run directory already holds is not repeated.
    """
    if only_plan:
        _show_plan(model, policy)
        return
    from safeguard import api
    from safeguard.report.schema import EXIT_CODES

    model = model.resolve()
    out = out or model.with_name(f"{model.name}.certification")
    reporter = choose(progress)
    report = api.certify(model, policy=policy, out=out, device=device, offline=offline, progress=reporter)
    click.echo(printable(f"{report.verdict}: {report.sentence}"))
    click.echo(f"report: {out / 'report.html'}")
    context.exit(EXIT_CODES[report.verdict])


def _show_plan(model: Path, policy: Path | None) -> None:
    raise NotImplementedError
