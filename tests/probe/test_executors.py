"""Serial and several processes give the same report, and a killed run repeats nothing that was finished."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safeguard.errors import ModelFault, UsageFault
from safeguard.policy.examination import UnitSpec
from safeguard.probe.campaign import Campaign
from safeguard.probe.executors import Executor, Processes, Serial, Worker, choose, to_draw
from safeguard.probe.units import Units
from safeguard.progress import SilentProgress
from safeguard.results.unit import UnitResult

TIMES = {"seconds": True, "cpu_seconds": True, "checkpoints": {"__all__": {"seconds"}}}


@pytest.fixture
def threads() -> Iterator[None]:
    """As many threads as a worker of two has here: results depend on them in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(executor: Executor, campaign: Campaign, specs: Sequence[UnitSpec], out: Path) -> list[dict[str, object]]:
    units = Units(out, shared=False)
    results = {result.address: result for result in executor.run(campaign, specs, units, SilentProgress())}
    assert all(units.find(spec.address) == results[spec.address] for spec in specs)
    return [results[spec.address].model_dump(exclude=TIMES) for spec in specs]


@pytest.fixture
def whole(world: Path, campaign: Campaign) -> Campaign:
    """The campaign with a control; here that is the base model."""
    return campaign.with_control(world / "base")


def test_two_processes_find_what_one_finds(world: Path, whole: Campaign, threads: None) -> None:
    specs = whole.units()
    assert {spec.role for spec in specs} == {"base", "unlearned", "hardened"}
    assert run(Serial(), whole, specs, world / "one") == run(Processes(2), whole, specs, world / "two")


def test_what_was_finished_before_a_kill_is_kept(world: Path, whole: Campaign) -> None:
    specs, units = whole.units(), Units(world / "run", shared=False)
    running = Serial().run(whole, specs, units, SilentProgress())
    first: UnitResult = next(iter(running))
    del running
    assert units.find(first.address) == first
    assert [spec.address for spec in specs if units.find(spec.address)] == [first.address]


def test_images_are_drawn_once_for_all_models(whole: Campaign) -> None:
    specs = whole.units()
    fine_tunes = [spec for spec in specs if spec.probe.id != "released"]
    assert len(to_draw(whole, specs)) == 2 < len(fine_tunes)


def test_fewer_than_one_worker_is_refused(campaign: Campaign) -> None:
    with pytest.raises(UsageFault, match="0 workers"):
        Processes(0)
    assert isinstance(choose(1, "cpu", campaign.model_dir), Serial)
    assert isinstance(choose(2, "cpu", campaign.model_dir), Processes)


def test_a_worker_judges_as_the_campaign_does_or_not_at_all(world: Path, campaign: Campaign) -> None:
    units = Units(world / "run", shared=False)
    for change in ({"code": "other"}, {"judges": campaign.judges.model_copy(update={"question": "other"})}):
        with pytest.raises(ModelFault, match="changed since the certification began"):
            Worker(replace(campaign, **change), units, SilentProgress())


def test_a_named_gpu_is_the_only_one(campaign: Campaign) -> None:
    assert isinstance(choose(None, "cuda:1", campaign.model_dir), Serial)


def test_a_script_without_a_guard_certifies_in_one_process(world: Path) -> None:
    """New processes import the script again, so functions start none unless they are asked to."""
    script = world / "script.py"
    script.write_text(
        "from safeguard import api\n"
        f"report = api.certify({str(world / 'model')!r}, policy={str(world / 'policy.yaml')!r})\n"
        "print('verdict', report.verdict)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verdict ")
