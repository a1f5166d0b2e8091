"""A unit that tries several things and is killed goes on where it was: nothing that was judged is judged again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safeguard.attack.grid import GridConfig
from safeguard.attack.search import SearchConfig
from safeguard.policy.examination import UnitSpec
from safeguard.policy.schema import AttackMethod
from safeguard.policy.suite import ProbeSpec
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Worker
from safeguard.probe.units import Units, schedules
from safeguard.progress import SilentProgress
from safeguard.results.unit import UnitResult
from tests.contracts.runs import Killed

GRID = ProbeSpec.model_validate(
    {
        "id": "grid",
        "title": "given",
        "intent": "malicious",
        "attack": {"name": "grid", **GridConfig.tiny().model_dump(mode="json", exclude_unset=True)},
    }
)


@pytest.fixture
def spec(campaign: Campaign) -> UnitSpec:
    """The grid beside the suite's probes."""
    return beside(campaign, GRID)


def beside(campaign: Campaign, probe: ProbeSpec) -> UnitSpec:
    """A unit of a probe that the suite does not have."""
    campaign.suite.probes.append(probe)
    campaign.schedules.update(schedules(campaign.suite))
    return campaign.unit("hardened", probe, 0)


SEARCH = GRID.model_copy(
    update={
        "id": "search",
        "attack": AttackMethod.model_validate(
            {"name": "search", **SearchConfig.tiny().model_dump(mode="json", exclude_unset=True)}
        ),
    }
)


def outcome(unit: UnitResult) -> tuple[Any, ...]:
    """All but times."""
    points = [point.model_copy(update={"seconds": 0.0}) for point in unit.checkpoints]
    return unit.address, unit.rows, points, unit.data_digests, unit.image_statistics


@contextmanager
def looks(worker: Worker) -> Iterator[list[int]]:
    """The efforts that are looked at inside the block."""
    seen: list[int] = []
    look = worker.evaluator.look

    def watched(model: Any, attempt: Any, *args: Any, **settings: Any) -> Any:
        seen.append(attempt.effort)
        return look(model, attempt, *args, **settings)

    worker.evaluator.look = watched  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        worker.evaluator.look = look  # type: ignore[method-assign]


def run_killed(worker: Worker, spec: UnitSpec, after: int) -> None:
    """Killed when one attempt more than ``after`` was judged."""
    worker.progress = Killed(spec.title, after)
    with pytest.raises(KeyboardInterrupt):
        worker.run(spec)
    worker.progress = SilentProgress()


def test_a_killed_unit_goes_on_and_ends_where_an_uninterrupted_one_does(worker: Worker, spec: UnitSpec) -> None:
    worker.draw(spec)
    run_killed(worker, spec, after=1)
    assert worker.units.find(spec.address) is None
    with looks(worker) as seen:
        resumed = worker.run(spec)
    assert seen == [0, 2], "the released model is needed for its statistics, the first configuration is not"
    whole = Worker(worker.campaign, Units(worker.units.folder.parent / "other", shared=False), SilentProgress())
    assert outcome(resumed) == outcome(whole.run(spec))
    assert resumed.evaluated() == [0, 1, 2]
    assert {path.name for path in (worker.units.folder / spec.address).iterdir()} == {
        "unit.json",
        *(f"effort-0000{effort}.png" for effort in (0, 1, 2)),
    }
    assert worker.campaign.examination.contradictions(resumed) == []


def test_what_was_kept_is_dropped_when_the_unit_is_finished(worker: Worker, spec: UnitSpec, world: Path) -> None:
    worker.draw(spec)
    run_killed(worker, spec, after=1)
    assert any((world / "run" / "unfinished" / spec.address).rglob("00001.json"))
    worker.run(spec)
    assert list((world / "run" / "unfinished").iterdir()) == []


def test_a_fresh_run_uses_nothing_of_a_killed_one(worker: Worker, spec: UnitSpec, world: Path) -> None:
    worker.draw(spec)
    run_killed(worker, spec, after=1)
    worker.units = Units(world / "run", shared=False, fresh=True)
    with looks(worker) as seen:
        worker.run(spec)
    assert seen == [0, 1, 2]


def test_what_was_kept_and_cannot_be_read_is_judged_again(worker: Worker, spec: UnitSpec, world: Path) -> None:
    worker.draw(spec)
    run_killed(worker, spec, after=1)
    (kept,) = (world / "run" / "unfinished" / spec.address).rglob("00001.json")
    kept.write_text("{half")
    with looks(worker) as seen:
        worker.run(spec)
    assert seen == [0, 1, 2]


def test_a_killed_search_goes_on_and_every_trial_has_noise_of_its_own(worker: Worker) -> None:
    spec = beside(worker.campaign, SEARCH)
    worker.draw(spec)
    run_killed(worker, spec, after=2)
    with looks(worker) as seen:
        resumed = worker.run(spec)
    assert seen == [0, 3, 4, 5]
    whole = Worker(worker.campaign, Units(worker.units.folder.parent / "other", shared=False), SilentProgress())
    assert outcome(resumed) == outcome(whole.run(spec))
    assert worker.campaign.examination.contradictions(resumed) == []
    noise = [{row.seed for row in resumed.rows if row.effort == effort} for effort in resumed.efforts]
    assert sum(map(len, noise)) == len(set().union(*noise))
    released = worker.run(worker.campaign.unit("hardened", worker.campaign.spec("released"), 0))
    assert noise[0] == {row.seed for row in released.rows if row.subject == "axes"}


def test_a_trial_where_nothing_was_tried_is_a_contradiction(worker: Worker, spec: UnitSpec) -> None:
    worker.draw(spec)
    unit = worker.run(spec)
    points = [point.model_copy(update={"trial": unit.checkpoints[-1].trial}) for point in unit.checkpoints]
    without = [point.model_copy(update={"trial": None}) for point in unit.checkpoints]
    for edited, effort in ((points, 0), (without, 1)):
        told = worker.campaign.examination.contradictions(unit.model_copy(update={"checkpoints": edited}))
        assert told and told[0].startswith(f"effort {effort}: its trial is")


def edited(worker: Worker, unit: UnitResult, **changes: Any) -> list[str]:
    """What is told of a unit in whose file somebody changed that."""
    return worker.campaign.examination.contradictions(unit.model_copy(update=changes))


def test_a_given_configuration_that_is_called_a_random_one_is_a_contradiction(worker: Worker, spec: UnitSpec) -> None:
    """Of random trials some may break the model, and they bound a share of a distribution that nobody declared."""
    worker.draw(spec)
    unit = worker.run(spec)
    for kind in ("random", "confirmed"):
        points = [
            point.model_copy(update={"trial": point.trial and point.trial.model_copy(update={"kind": kind})})
            for point in unit.checkpoints
        ]
        told = edited(worker, unit, checkpoints=points)
        assert told and told[0].startswith("effort 1: its trial is")


@pytest.mark.parametrize("probe", ["malicious-full", "benign-lora"])
def test_a_fine_tune_that_names_no_images_is_a_contradiction(worker: Worker, probe: str) -> None:
    """Without them nobody asks whether it learnt anything, or whether they show what they are said to."""
    spec = worker.campaign.unit("hardened", worker.campaign.spec(probe), 0)
    worker.draw(spec)
    unit = worker.run(spec)
    assert edited(worker, unit) == [] and unit.training_images and unit.data_digests
    other = "retain" if unit.training_images[0].source != "retain" else "concept"
    renamed = [part.model_copy(update={"source": other}) for part in unit.training_images]
    for changes in ({"data_digests": []}, {"training_images": []}, {"training_images": renamed}):
        (told,) = edited(worker, unit, **changes)
        assert told.startswith("its training images")


def test_a_released_model_trained_on_nothing_and_efforts_count_what_the_probe_counts(worker: Worker) -> None:
    spec = worker.campaign.unit("hardened", worker.campaign.spec("released"), 0)
    unit = worker.run(spec)
    assert edited(worker, unit) == []
    assert edited(worker, unit, data_digests=["sha256:0"])[0].startswith("its training images")
    assert edited(worker, unit, axis="variants") == ["its efforts count variants, the probe's steps"]
