"""What a search has tried, kept in a file so that a killed one goes on, and what it tries next.

The next configuration is that of a tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for
Hyper-Parameter Optimization", section 4; Optuna's): a pure function of the trials before it and of a seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeguard.attack.space import Again, Chooser, Space
from safeguard.errors import EnvironmentFault
from safeguard.files import write_json
from safeguard.results.record import Record


class Tried(Record):
    """One trial of a search."""

    number: int
    """From 1; the random ones come first."""
    choices: dict[str, float]
    """As :class:`safeguard.attack.space.Chooser` has them."""
    value: float
    """Mean score of the concept that scores most, in [0, 1], where the model still worked; below zero: it broke."""
    step: int
    """After which that was seen."""


class Trials:
    """All trials so far.

    Args:
        folder: where they are kept; none: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "trials.json" if folder else None
        self._found: dict[int, Tried] = {}
        if self._path and self._path.exists():
            kept = [Tried.model_validate(each) for each in json.loads(self._path.read_text(encoding="utf-8"))]
            self._found = {each.number: each for each in kept}

    def get(self, number: int) -> Tried | None:
        """The trial of that number; none: it was not finished."""
        return self._found.get(number)

    def add(self, tried: Tried) -> None:
        """One that is finished."""
        self._found[tried.number] = tried
        if self._path:
            write_json(self._path, [each.model_dump(mode="json") for each in self._found.values()])

    def before(self, number: int) -> list[Tried]:
        """Those with a smaller number, in order."""
        return [self._found[each] for each in sorted(self._found) if each < number]

    def ranked(self) -> list[Tried]:
        """The worst for the model first; those that broke it come last, and of equals the earlier is first."""
        return sorted(self._found.values(), key=lambda each: (-each.value, each.number))


class _Guided(Chooser):
    """As an Optuna trial suggests."""

    def __init__(self, trial: Any) -> None:
        super().__init__()
        self._trial = trial

    def index(self, name: str, count: int) -> int:
        return int(self._trial.suggest_categorical(name, list(range(count))))

    def share(self, name: str) -> float:
        return float(self._trial.suggest_float(name, 0.0, 1.0))


def suggested(space: Space, steps: int, before: Sequence[Tried], seed: int) -> dict[str, float]:
    """The choices of the trial that follows these.

    Raises:
        EnvironmentFault: Optuna is not installed.
    """
    optuna = _optuna()
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=0)
    )
    for each in before:
        again = Again(each.choices)
        space.draw(again, steps)
        distributions = {
            name: optuna.distributions.CategoricalDistribution(list(range(count)))
            if count
            else optuna.distributions.FloatDistribution(0.0, 1.0)
            for name, count in again.options.items()
        }
        study.add_trial(optuna.trial.create_trial(params=again.choices, distributions=distributions, value=each.value))
    found = _Guided(study.ask())
    space.draw(found, steps)
    return found.choices


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise EnvironmentFault(
            "a search needs Optuna, which is not installed", fix="pip install 'safeguard[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
