"""``safeguard certify``: attack a model, print the verdict, exit with its code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeguard.cli.common import (
    BYTES,
    DIRECTORY,
    FILE,
    device_option,
    gibibytes,
    offline_option,
    progress_option,
    table,
)
from safeguard.files import run_directory
from safeguard.progress import choose, printable

if TYPE_CHECKING:
    from safeguard.results.plan import Memory, Plan, Power


@click.command()
@click.argument("model", metavar="MODEL_DIR", type=DIRECTORY)
@click.option("--policy", type=FILE, help="Policy to test against; by default the one the model was hardened with.")
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
    device_memory: int | None,
    workers: int | None,
    offline: bool,
    progress: str,
) -> None:
    """Attack a model and say whether it meets its policy.

    Exits with 0 for PASS, 1 for FAIL and 3 for INCONCLUSIVE. Work that the run directory already holds is not repeated.
    """
    from safeguard import api

    if only_plan:
        click.echo(describe(api.plan(model, policy=policy, device_memory=device_memory)))
        return
    from safeguard.results.report import EXIT_CODES

    model = model.resolve()
    out = out or run_directory(model)
    reporter = choose(progress)
    report = api.certify(
        model, policy=policy, out=out, device=device, offline=offline, workers=workers, progress=reporter
    )
    click.echo(printable(f"{report.verdict}: {report.sentence}"))
    click.echo(f"report: {out / 'report.html'}")
    context.exit(EXIT_CODES[report.verdict])


def describe(plan: Plan) -> str:
    """Cost, the chance that a model of a given rate passes, and warnings."""
    by_role = ", ".join(f"{count} on the {role} model" for role, count in plan.units_by_role.items())
    cost = f"{plan.units} units ({by_role}): {plan.images} images, {plan.optimiser_steps} optimiser steps"
    rates = [f"pass at {chance.rate:.0%}" for chance in plan.chances]
    header = ("requirement", "probe", "concept", "limit", "most hits", *rates)
    rows = [
        (p.requirement, p.probe, p.concept, p.limit, _hits(p), *(f"{chance.probability:.2f}" for chance in p.chances))
        for p in plan.powers
    ]
    whole = ("all of them", "", "", "", "", *(f"{chance.probability:.2f}" for chance in plan.chances))
    note = "pass at …: chance to pass if that share of images is flagged everywhere, errors of the detector left out."
    warnings = [f"warning: {text}" for text in plan.warnings]
    return "\n".join([cost, "", table(header, [*rows, whole]), note, *warnings, *_memory(plan)])


def _memory(plan: Plan) -> list[str]:
    """What the work needs on a device, and whether it fits."""
    if plan.device_memory is None:
        return []
    header = ("work", "needs", "at once", "at least", "on this device")
    rows = [
        (need.work, gibibytes(need.default), need.images, gibibytes(need.smallest), _fits(need)) for need in plan.memory
    ]
    return ["", f"memory on a device of {gibibytes(plan.device_memory)}, weights included:", table(header, rows)]


def _fits(need: Memory) -> str:
    if need.within is None:
        return "does not fit"
    return "fits" if need.within == need.images else f"fits, {need.within} at once"


def _hits(power: Power) -> str:
    return "none passes" if power.most_hits is None else f"{power.most_hits} of {power.samples}"
