"""Concept resurgence in one dimension (Unstable Unlearning, figures 4 and 5), and the certifier where rates are known.

\b
    python -m benchmarks.resurgence           prints the tables of docs/results/resurgence.md; five minutes of one core
    python -m benchmarks.resurgence --write   the same, into that page, with its figures
    python -m benchmarks.resurgence --only certifier

Diffusion models of one number learn N(-2, 1) of which the interval [-2, -1], the concept, keeps a mass rho, or learn
all of it and are made to forget. Then they are fine-tuned on N(-1, 1), of which nothing lies in the concept. The mass
of the concept is solved for, not estimated: before, after, and for networks without error. Since it is known, so is
what a certification must say: the last table counts how often one says PASS at a limit that is the true rate. The exit
code is 1 where a promise of that table is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch

from benchmarks.resurgence import page
from benchmarks.resurgence.calibration import USERS, all_rows, populate
from benchmarks.resurgence.study import Scale, approximate, by_training, dice, exact, on_all, perfect
from benchmarks.resurgence.training import train
from safeguard.files import write_text

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "results" / "resurgence.md"
MARK = "<!-- {}: python -m benchmarks.resurgence --write -->"
END = "<!-- end -->"

Found = tuple[dict[str, str], dict[str, str]]
"""Tables by name, and figures by the name of their file."""


def unlearning(scale: Scale, rounds: int) -> Found:
    """Exact and approximate unlearning, and networks without error."""
    trained, ideal = exact(scale), perfect(scale)
    forgot = approximate(scale, on_all(trained, scale))
    tables = {
        "exact, mass": page.of_seeds(trained, "rho", "mass", 3),
        "exact, log-likelihood": page.of_seeds(trained, "rho", "likelihood", 2),
        "approximate, mass": page.of_seeds(forgot, "ascent", "mass", 3),
        "approximate, log-likelihood": page.of_seeds(forgot, "ascent", "likelihood", 2),
        "without error": page.of_perfect(ideal),
    }
    arms = {"exact unlearning": ("rho", trained), "gradient ascent": ("weight of the ascent", forgot)}
    figures = {"resurgence": page.by_row(arms, ideal), "resurgence-density": page.densities(trained, dice("figure"))}
    return tables, figures


def training(scale: Scale, rounds: int) -> Found:
    """What is left of the concept after shorter and longer training without it."""
    return {"training": page.of_seeds(by_training(scale), "steps", "mass", 3)}, {}


def certifier(scale: Scale, rounds: int) -> Found:
    """Shares of false PASS."""
    unlearned = train(torch.zeros(1), dice("certifier"), scale.training)
    population = populate(unlearned, rounds, USERS, scale.tuning)
    return {"certifier": page.of_certifier(population, list(all_rows(population)))}, {}


PARTS: dict[str, Callable[[Scale, int], Found]] = {part.__name__: part for part in (unlearning, training, certifier)}


def written(text: str, tables: dict[str, str]) -> str:
    """The page with its tables replaced, each between its mark and the next end."""
    for name, table in tables.items():
        before, mark, rest = text.partition(MARK.format(name))
        if not mark:
            raise ValueError(f"{PAGE.name} has no place for the table {name!r}")
        text = f"{before}{mark}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    return text


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True, help="Models per row.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=125, show_default=True, help="Certifications of every user."
)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="A part of it; may be given repeatedly.")
@click.option("--write", is_flag=True, help="Also write tables and figures into docs/.")
def main(seeds: int, rounds: int, only: Sequence[str], write: bool) -> None:
    """Print the tables."""
    torch.set_num_threads(1)  # sums are split otherwise, and numbers depend on the machine
    kept = True
    for part in only or PARTS:
        tables, figures = PARTS[part](Scale(seeds=seeds), rounds)
        for name, table in tables.items():
            click.echo(f"{name}\n\n{table}\n")
        kept &= page.BROKEN not in "".join(tables.values())
        if write:
            write_text(PAGE, written(PAGE.read_text(encoding="utf-8"), tables))
            for name, figure in figures.items():
                write_text(DOCS / "images" / f"{name}.svg", figure)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
