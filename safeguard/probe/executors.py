"""Who runs units: this process, or several at once; the report is the same bit for bit.

An executor is handed plain data and gives plain data back, so that one on a cluster needs nothing else. On CPUs a
result depends on the number of threads in its last bits: workers that are to agree have equally many.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from safeguard.attack.target import Base, Target
from safeguard.data.fine_tuning import DataSets
from safeguard.diffusion.model import DiffusionModel
from safeguard.errors import EnvironmentFault, ModelFault, UsageFault
from safeguard.io.formats import read_header
from safeguard.io.manifest import model_digest
from safeguard.io.opening import open_component, open_directory
from safeguard.policy.examination import UnitSpec, question
from safeguard.probe.campaign import Campaign
from safeguard.probe.evaluator import Evaluator
from safeguard.probe.units import Units, make_attack, run_unit
from safeguard.processes import available_memory
from safeguard.progress import Progress, SilentProgress
from safeguard.provenance import OF_NO_UNIT, code_digest
from safeguard.results.record import Role
from safeguard.results.unit import UnitResult
from safeguard.seeds import examination


class Worker:
    """Runs the units of a campaign in this process, one model in memory at a time.

    Args:
        device: where models run; the campaign's if none.
    """

    def __init__(self, campaign: Campaign, units: Units, progress: Progress, device: str | None = None) -> None:
        self.campaign, self.units, self.progress = campaign, units, progress
        self.device = device or campaign.device
        self.evaluator = Evaluator(campaign.policy, self.device, campaign.nonce)
        asked = question(campaign.policy, self.evaluator.digests()), code_digest(OF_NO_UNIT)
        if asked != (campaign.judges.question, campaign.code):
            raise ModelFault(
                "a detector, a metric or the code changed since the certification began",
                fix="run the certification again, and change nothing while it runs",
            )
        self._target: Target | None = None
        self._exam = examination(campaign.policy.seed, campaign.nonce)
        self.data = DataSets(
            campaign.policy,
            campaign.digests["base"],
            campaign.code,
            campaign.training_sets,
            torch.device(self.device),
            self._exam,
            self.evaluator.judge(),
        )

    def open(self, role: Role) -> Target:
        """The model of that role; what was in memory before is let go first."""
        if self._target is None or self._target.role != role:
            self._target = self.data.base = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            campaign = self.campaign
            opened = open_directory(campaign.directories[role], device=self.device)
            check_digest(role, opened.directory, opened.digest, campaign.digests[role])
            model = DiffusionModel(opened.pipeline)
            model.exposed_parts = campaign.exposed_parts
            digest, score = campaign.digests[role], self.evaluator.score
            self._target = Target(role, model, digest, campaign.policy, self.data, score, self._exam, self._base())
            self.data.base = model if role == "base" else None
        return self._target

    def _base(self) -> Base:
        """The base model, component by component: no second model is held."""
        directory, expected = self.campaign.directories["base"], self.campaign.digests["base"]
        differing = frozenset(each.name for each in self.campaign.components if each.differs)

        def component(name: str) -> Any:
            found = open_component(directory, name)
            check_digest("base", directory, model_digest(directory), expected)
            return found

        return Base(differing, component)

    def draw(self, spec: UnitSpec) -> None:
        """Draw the images that a unit's attack trains on, with the base model."""
        self.open("base")
        make_attack(spec.probe).draw(self.data, spec.seed)

    def run(self, spec: UnitSpec) -> UnitResult:
        """Run a unit and keep what it found."""
        attack, target = make_attack(spec.probe), self.open(spec.role)
        return run_unit(spec, attack, target, self.evaluator, self.units, self.progress)


def check_digest(role: Role, directory: Path, found: str, expected: str) -> None:
    """Refuse a model that is not any more what the campaign is about.

    Raises:
        ModelFault: it is not.
    """
    if found != expected:
        raise ModelFault(
            f"the {role} model changed while units were run",
            fix="let nothing write to it, then run the certification again",
            where=str(directory),
        )


class Executor(Protocol):
    """Runs units."""

    def run(
        self, campaign: Campaign, specs: Sequence[UnitSpec], units: Units, progress: Progress
    ) -> Iterator[UnitResult]:
        """Results as they come, in any order; every finished unit is kept before its result is given."""
        ...


def to_draw(campaign: Campaign, specs: Sequence[UnitSpec]) -> list[UnitSpec]:
    """Of units that train on the same images, the first."""
    found: dict[tuple[str, int], UnitSpec] = {}
    for spec in specs:
        if described := campaign.schedules[spec.probe.id].training_set:
            found.setdefault((described, spec.seed), spec)
    return list(found.values())


class Serial:
    """One unit after the other, in this process."""

    def run(
        self, campaign: Campaign, specs: Sequence[UnitSpec], units: Units, progress: Progress
    ) -> Iterator[UnitResult]:
        """In the order of the units."""
        worker = Worker(campaign, units, progress)
        todo = to_draw(campaign, specs)
        with progress.task("draw images to fine-tune on", len(todo)) as task:
            for done, spec in enumerate(todo, start=1):
                worker.draw(spec)
                task.update(done)
        for spec in specs:
            yield worker.run(spec)


class Processes:
    """Several workers, each a process with a device or a share of the cores of its own.

    Raises:
        UsageFault: fewer than one worker.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UsageFault(f"{workers} workers do nothing", fix="use at least one")
        self.workers = workers

    def run(
        self, campaign: Campaign, specs: Sequence[UnitSpec], units: Units, progress: Progress
    ) -> Iterator[UnitResult]:
        """As they are finished; those of one model are handed out together."""
        try:
            with self._pool(campaign, units) as pool, progress.task("units", len(specs)) as task:
                for drawn in as_completed([pool.submit(_draw, spec) for spec in to_draw(campaign, specs)]):
                    drawn.result()
                running = {pool.submit(_run, spec): spec for spec in specs}
                for done, future in enumerate(as_completed(running), start=1):
                    task.update(done, finished=running[future].title)
                    yield future.result()
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a worker process died, most likely for lack of memory",
                fix="run the same command with fewer --workers; finished units are kept",
            ) from error

    @contextmanager
    def _pool(self, campaign: Campaign, units: Units) -> Iterator[ProcessPoolExecutor]:
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        places = context.Queue()
        for place in range(self.workers):
            places.put(place)
        threads = max(1, torch.get_num_threads() // self.workers)
        pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_begin, initargs=(campaign, units, places, threads)
        )
        try:
            yield pool
            pool.shutdown()
        except BaseException:  # what is queued would still be run, and what runs takes long; finished units are kept
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_make: Callable[[], Worker] | None = None
"""Of a process that is one of several: how its worker is made, when the first task comes."""


def _begin(campaign: Campaign, units: Units, places: Any, threads: int) -> None:
    global _make
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    place, device = places.get(), campaign.device
    if device == "cuda":
        device = f"cuda:{place % torch.cuda.device_count()}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(threads)
    _make = cache(partial(Worker, campaign, units, SilentProgress(), device))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _worker() -> Worker:
    assert _make is not None, "the process was begun"
    return _make()


def _draw(spec: UnitSpec) -> None:
    _worker().draw(spec)


def _run(spec: UnitSpec) -> UnitResult:
    return _worker().run(spec)


def choose(workers: int | None, device: str, model_dir: Path) -> Executor:
    """The executor for so many workers; none: one per GPU that is not named, or one per core as far as memory goes."""
    if workers is None:
        on_gpu = torch.cuda.device_count() if device == "cuda" else 1
        workers = on_gpu if device.startswith("cuda") else _cores(model_dir)
    return Serial() if workers == 1 else Processes(workers)


OVERHEAD = 1.5e9
"""Bytes a worker needs beside weights: the libraries, activations, detectors."""
COPIES = 5
"""How often a worker holds the weights at most, in float32: the model, the start, gradients and two moments."""


def _cores(model_dir: Path) -> int:
    """How many workers the threads that this process may use, and the free memory, carry."""
    stored = (slot for path in model_dir.rglob("*.safetensors") for slot in read_header(path).values())
    weights = sum(4 * math.prod(slot.shape) for slot in stored)
    free = available_memory()
    return max(1, min(torch.get_num_threads(), int(free / (COPIES * weights + OVERHEAD))))
