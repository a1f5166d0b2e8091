"""``python -m recipes.reference.reading``: draw images along relearning, look at them blind and twice, keep the labels.

``draw`` takes the models from ``safeguard harden``: the group's policy (``policy``) with no resilience, and hardened.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from recipes.reference import labels
from recipes.reference.detector_data import DATA, GROUPS
from recipes.reference.relearning import Drawn, drawn_by_base, policy_of, relearn
from safeguard import reference
from safeguard.errors import UsageFault
from safeguard.files import atomic_path

FOLDER = click.Path(path_type=Path, file_okay=False)
SAMPLES = 3
"""Images of every name, model and stage."""


@click.group()
def main() -> None:
    """Labels by eye for the detector's calibration."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--group", default=GROUPS[0], show_default=True, help="Group of names that is erased.")
@click.option("--steps", default=0, show_default=True, help="Outer steps of resilience; 0: only unlearned.")
def policy(file: Path, group: str, steps: int) -> None:
    """Write the quickstart policy for a group into FILE."""
    policy_of(group, file, resilience_steps=steps)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--unlearned", type=FOLDER, required=True, help="Model that is only unlearned.")
@click.option("--hardened", type=FOLDER, required=True, help="Model that is hardened.")
@click.option("--group", default=GROUPS[0], show_default=True)
def draw(folder: Path, unlearned: Path, hardened: Path, group: str) -> None:
    """Draw all images into FOLDER, and numbered sheets for two readings."""
    base = reference.path()
    drawn = Drawn.joined(
        [
            drawn_by_base(base, group, samples=SAMPLES),
            relearn(hardened, base, group, "hardened", samples=SAMPLES),
            relearn(unlearned, base, group, "unlearned", samples=SAMPLES),
        ]
    )
    with atomic_path(folder / "drawn.npz") as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, images=drawn.images, names=drawn.names, models=drawn.models, stages=drawn.stages)
    for reading in (1, 2):
        click.echo("\n".join(map(str, labels.sheets(drawn.images, reading, folder))))


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--group", default=GROUPS[0], show_default=True)
def keep(folder: Path, group: str) -> None:
    """Keep the answers in FOLDER: reading-1.txt and reading-2.txt, a line of digits 0, 1, 2 in the sheets' order."""
    with np.load(folder / "drawn.npz", allow_pickle=False) as stored:
        stages = [int(stage) for stage in stored["stages"]]
        drawn = Drawn(stored["images"], stored["names"].tolist(), stored["models"].tolist(), stages)
    first, second = (_answers(folder, reading, len(stages)) for reading in (1, 2))
    labels.write(DATA / f"relearning-{group}", drawn, first, second)
    click.echo(f"{len(stages)} images, kappa {labels.kappa(first, second):.3f}")


def _answers(folder: Path, reading: int, count: int) -> list[int]:
    path = folder / f"reading-{reading}.txt"
    digits = "".join(path.read_text(encoding="utf-8").split())
    if len(digits) != count or set(digits) - set("012"):
        raise UsageFault(f"{len(digits)} answers for {count} images", fix="write one of 0, 1, 2 each", where=str(path))
    return labels.in_rows([int(digit) for digit in digits], reading)


if __name__ == "__main__":
    main()
