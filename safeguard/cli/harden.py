"""``safeguard harden``: policy in, hardened model directory out."""

from __future__ import annotations

from pathlib import Path

import click

from safeguard.cli.common import DIRECTORY, FILE, device_option, offline_option, progress_option
from safeguard.cli.streams import unheard
from safeguard.progress import choose, printable


@click.command()
@click.argument("policy", type=FILE)
@click.option("--out", type=DIRECTORY, required=True, help="Directory the hardened model is written to.")
@device_option
@click.option("--resume/--fresh", default=True, help="Continue an interrupted run (the default), or start again.")
@click.option("--overwrite", is_flag=True, help="Replace a model that --out already holds.")
@offline_option(False)
@click.option(
    "--cuda-graphs", is_flag=True, help="Record the denoiser's work on a GPU and replay it: faster, more memory."
)
@progress_option
def harden(
    policy: Path,
    out: Path,
    device: str,
    resume: bool,
    overwrite: bool,
    offline: bool,
    cuda_graphs: bool,
    progress: str,
) -> None:
    """Erase a policy's concepts from a model so that they stay gone.

    POLICY is a policy file. The result is a diffusers directory with the policy and the record of the run inside. An
    interrupted run continues where it was when the same command is given again.

    On several GPUs: accelerate launch -m safeguard harden ...
    """
    from safeguard import api
    from safeguard.processes import launched

    rank, _, _ = launched()
    reporter = choose(progress if rank == 0 else "none")
    api.harden(
        policy,
        out,
        device=device,
        fresh=not resume,
        overwrite=overwrite,
        offline=offline,
        cuda_graphs=cuda_graphs,
        progress=reporter,
    )
    if rank == 0:
        with unheard():
            click.echo(printable(f"hardened model: {out}"))
