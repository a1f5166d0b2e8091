"""Runs the cells of a study, each as a user would: ``safeguard harden``, then ``safeguard certify``.

Every command is a process of its own, so that several run side by side, each in memory of its own, and one that fails
costs one row. A model is not hardened again as long as its policy is the same, and certification reuses its units.
Cells that begin with the same phase, such as one unlearner under several objectives, share it. The processor time of
each counts the phase, and images that the next phase needs, too, twice: they are drawn anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path

from safeguard.errors import UsageFault
from safeguard.files import write_text
from safeguard.policy.loading import resolved_yaml
from safeguard.policy.study import Cell, Study, cells
from safeguard.progress import Progress, duration
from safeguard.provenance import environment
from safeguard.report.writing import load_report
from safeguard.results.hardening import HardeningRecord, read_record
from safeguard.results.report import EXIT_CODES, Report
from safeguard.seeds import derive
from safeguard.study.results import CellResult, Observation, StudyResult

TRUTH = "study.json"
CERTIFICATION = "certification"
"""Name of the run directory in a cell's folder."""


def cell_folder(out: Path, cell: Cell | CellResult) -> Path:
    """Where a cell works, below the directory of its study."""
    return out / "cells" / cell.task / cell.variant / f"seed-{cell.seed}"


class Runner:
    """Runs cells below ``out``, ``jobs`` at a time; the machine's cores are shared evenly.

    Raises:
        UsageFault: fewer than one job.
    """

    def __init__(self, out: Path, *, jobs: int, device: str, progress: Progress) -> None:
        if jobs < 1:
            raise UsageFault(f"{jobs} jobs do nothing", fix="use at least one")
        self.out, self.jobs, self.device, self.progress = out, jobs, device, progress
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = max(1, int(asked) if asked.isdecimal() else (os.cpu_count() or 1) // jobs)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, todo: Sequence[Cell]) -> list[CellResult]:
        """Results in the order of the cells, run variant by variant: those of one task may share a phase."""
        variants = list(dict.fromkeys(cell.variant for cell in todo))
        order = sorted(range(len(todo)), key=lambda place: variants.index(todo[place].variant))
        with self.progress.task(f"{len(todo)} cells", len(todo)) as task, ThreadPoolExecutor(self.jobs) as pool:
            try:
                running = {place: pool.submit(self.cell, todo[place]) for place in order}
                for done, future in enumerate(as_completed(running.values()), start=1):
                    self.progress.note(_line(future.result()))
                    task.update(done)
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return [running[place].result() for place in range(len(todo))]

    def cell(self, cell: Cell) -> CellResult:
        """One cell: hardened, certified, read back."""
        folder = cell_folder(self.out, cell)
        text = resolved_yaml(cell.policy)
        policy, model, run_dir = folder / "policy.yaml", folder / "model", folder / CERTIFICATION
        if not policy.is_file() or policy.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(policy, text)
        error = ""
        if read_record(model) is None:
            error = self._call(["harden", str(policy), "--out", str(model)], folder / "harden.log", (0,))
        if not error:
            # one examination for all cells of a seed: what is compared is drawn from the same noise
            nonce = f"{derive(cell.seed, 'study'):016x}"
            command = ["certify", str(model), "--out", str(run_dir), "--nonce", nonce]
            error = self._call(command, folder / "certify.log", tuple(EXIT_CODES.values()))
        if error:
            return CellResult(task=cell.task, variant=cell.variant, seed=cell.seed, error=error)
        record = read_record(model)
        assert record is not None, "harden ended well"
        return _read(cell, load_report(run_dir), record)

    def _call(self, arguments: list[str], log: Path, good: tuple[int, ...]) -> str:
        """Run one command of ours; what it said if it failed."""
        if self._stopped:
            raise KeyboardInterrupt
        command = [sys.executable, "-m", "safeguard", *arguments, "--device", self.device, "--progress", "plain"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            )
            with self._lock:
                self._running.add(process)
            process.wait()
        with self._lock:
            self._running.discard(process)
        return "" if process.returncode in good else _complaint(log, process.returncode)

    def _stop(self) -> None:
        self._stopped = True
        with self._lock:
            for process in self._running:
                process.terminate()


def run_study(
    study: Study,
    out: Path,
    *,
    jobs: int,
    device: str,
    only: Iterable[str],
    seeds: Sequence[int] = (),
    progress: Progress,
) -> StudyResult:
    """Run a study, or those of its cells whose names match, and write ``study.json``.

    Args:
        only: shell-style patterns over ``task/variant``; none: all cells.
        seeds: every cell once with each; none: with that of the study.

    Raises:
        PolicyFault: a cell is no valid policy.
        UsageFault: no cell matches.
    """
    todo = chosen(list(cells(study, seeds)), list(only))
    runner = Runner(out, jobs=jobs, device=device, progress=progress)
    started = time.monotonic()
    results = runner.run(todo)
    progress.note(f"{len(results)} cells in {duration(time.monotonic() - started)}")
    result = StudyResult(
        study=study,
        digest=study.digest,
        confidence=todo[0].policy.certification.confidence,
        environment=environment(),
        threads=runner.threads,
        cells=results,
    )
    write_text(out / TRUTH, result.model_dump_json(indent=2) + "\n")
    return result


def chosen(every: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose name matches one of the patterns."""
    found = [cell for cell in every if not only or any(fnmatchcase(cell.name, pattern) for pattern in only)]
    if not found:
        names = ", ".join([*dict.fromkeys(cell.name for cell in every)][:4])
        raise UsageFault(f"no cell matches {', '.join(only)}", fix=f"cells are called {names}, …")
    return found


def _complaint(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "")
    return said.partition("error: ")[2] or said or f"ended with exit code {code}"


def _line(result: CellResult) -> str:
    name = f"{result.name}, seed {result.seed}"
    if result.error:
        return f"{name}: {result.error}"
    return f"{name}: hardened in {duration(result.cpu_seconds)} of processor time, " + ", ".join(
        f"{observed.probe} at {observed.step}: {observed.flagged}/{observed.samples}"
        for observed in result.observations
    )


def _read(cell: Cell, report: Report, record: HardeningRecord) -> CellResult:
    observations = []
    for claim in report.claims:
        curves = {curve.role: curve.points for curve in claim.curves}
        base = {point.effort: point.rate for point in curves.get("base", [])}
        observations += [
            Observation(
                probe=claim.probe,
                concept=claim.concept,
                step=point.effort,
                flagged=point.flagged,
                samples=point.samples,
                rate=point.rate,
                upper=point.upper,
                training_loss=point.loss,
                base=base.get(point.effort),
            )
            for point in curves["hardened"]
        ]
    return CellResult(
        task=cell.task,
        variant=cell.variant,
        seed=cell.seed,
        verdict=report.verdict,
        cpu_seconds=record.cpu_seconds,
        peak_bytes=record.peak_bytes,
        observations=observations,
        utility=report.utility,
    )
