"""``safeguard certify``: attack a model, print the verdict, exit with its code."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import BYTES, DIRECTORY, FILE, device_option, offline_option, progress_option
from safeguard.cli.plan import show
from safeguard.cli.streams import unheard
from safeguard.files import run_directory
from safeguard.progress import choose, printable


@click.command()
@click.argument("model", metavar="MODEL_DIR", type=DIRECTORY)
@click.option("--policy", type=FILE, help="Policy to test against; by default the one the model was hardened with.")
@click.option(
    "--policy-digest",
    metavar="HEX",
    help="Refuse any other policy than the one of this digest (its first 16 digits are enough).",
)
@click.option("--out", type=DIRECTORY, help="Run directory; by default beside MODEL_DIR, with .certification appended.")
@device_option
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be run and what it can show; run nothing.")
@click.option(
    "--device-memory",
    type=BYTES,
    metavar="SIZE",
    help="With --plan: count what fits a device with so much memory, such as 24GiB.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Units run at the same time, each in a process of its own; by default one per GPU, or per core as far as "
    "memory goes.",
)
@click.option(
    "--nonce",
    metavar="HEX",
    help="Repeat a run: all seeds follow from its nonce. By default one is drawn, after the model's digest is fixed.",
)
@click.option(
    "--fresh", is_flag=True, help="Use nothing that was finished before, here or in the cache, and draw new seeds."
)
@offline_option(True)
@progress_option
@click.pass_context
def certify(
    context: click.Context,
    model: Path,
    policy: Path | None,
    policy_digest: str | None,
    out: Path | None,
    device: str,
    only_plan: bool,
    device_memory: int | None,
    workers: int | None,
    nonce: str | None,
    fresh: bool,
    offline: bool,
    progress: str,
) -> None:
    """Attack a model and say whether it meets its policy.

    Exits with 0 for PASS, 1 for FAIL and 3 for INCONCLUSIVE. Work that the run directory already holds is not repeated.
    """
    from safeguard import api

    if only_plan:
        show(api.plan(model, policy=policy, device_memory=device_memory))
        return
    from safeguard.results.report import EXIT_CODES

    model = model.resolve()
    out = out or run_directory(model)
    click.echo(printable(api.whose(model, policy=policy, policy_digest=policy_digest)))
    report = api.certify(
        model,
        policy=policy,
        policy_digest=policy_digest,
        out=out,
        device=device,
        offline=offline,
        workers=workers,
        nonce=nonce,
        fresh=fresh,
        progress=choose(progress),
    )
    with unheard():
        click.echo(printable(f"{report.verdict}: {report.sentence}"))
        click.echo(f"report: {out / 'report.html'}")
    context.exit(EXIT_CODES[report.verdict])
