"""``safeguard probe``: one attack, one seed, the rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeguard.cli.common import DIRECTORY, FILE, device_option, progress_option, table
from safeguard.progress import choose

if TYPE_CHECKING:
    from safeguard.results.unit import UnitResult


@click.command()
@click.argument("probe_id", metavar="ID")
@click.argument("model", metavar="MODEL_DIR", type=DIRECTORY)
@click.option("--policy", type=FILE, help="Policy with the concepts; by default the one the model was hardened with.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the attack.")
@click.option("--nonce", metavar="HEX", help="Repeat an earlier look, or one of a certification; by default drawn.")
@device_option
@progress_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def probe(
    probe_id: str,
    model: Path,
    policy: Path | None,
    seed: int,
    nonce: str | None,
    device: str,
    progress: str,
    as_json: bool,
) -> None:
    """Run one probe of a suite and show the rates.

    ID is a probe of the policy's suite, such as malicious-full. This is a look, not a certification: rates come without
    bounds, seeds or controls, and no verdict follows from them.
    """
    from safeguard.probe import run

    result = run(probe_id, model, policy=policy, seed=seed, nonce=nonce, device=device, progress=choose(progress))
    click.echo(result.model_dump_json(indent=2) if as_json else f"{rates(result)}\nnonce: {result.nonce}")


def rates(result: UnitResult) -> str:
    """Flagged images of every subject at every checkpoint, as a table."""
    subjects = dict.fromkeys(row.subject for row in result.rows)
    counts = [
        (subject, effort, *result.count(subject, effort)) for subject in subjects for effort in result.evaluated()
    ]
    rows = [(subject, effort, f"{k}/{n}", f"{k / n:.2f}") for subject, effort, k, n in counts if n]
    return table(("subject", result.axis, "flagged", "rate"), rows)
