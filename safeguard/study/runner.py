"""Runs the cells of a study, each as a user would: ``safeguard harden``, then ``safeguard certify``.

Every command is a process of its own, so that its memory and processor time can be measured, several run side by side,
and one that fails costs one row. A model is not hardened again as long as its policy is the same (a hardening that was
interrupted starts anew, or its time would mean nothing), and certification reuses its units.
"""

from __future__ import annotations

import json
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

from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.model.files import write_json, write_text
from safeguard.policy.loading import resolved_yaml
from safeguard.probe.runner import environment
from safeguard.progress import Progress, duration
from safeguard.report.rendering import load_report
from safeguard.report.schema import EXIT_CODES, Report
from safeguard.study.schema import CERTIFICATION, Cell, CellResult, Look, Study, StudyResult, cell_folder, cells

TRUTH = "study.json"


class Runner:
    """Runs cells below ``out``, ``jobs`` at a time; the machine's cores are shared evenly.

    Raises:
        UsageFault: fewer than one job.
    """

    def __init__(self, out: Path, *, jobs: int, device: str, progress: Progress) -> None:
        if jobs < 1:
            raise UsageFault(f"{jobs} jobs do nothing", fix="use at least one")
        self.out, self.jobs, self.device, self.progress = out, jobs, device, progress
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, todo: Sequence[Cell]) -> list[CellResult]:
        """Results in the order of the cells."""
        found: dict[str, CellResult] = {}
        with self.progress.task(f"{len(todo)} cells", len(todo)) as task, ThreadPoolExecutor(self.jobs) as pool:
            try:
                waiting = [pool.submit(self.cell, cell) for cell in todo]
                for done, future in enumerate(as_completed(waiting), start=1):
                    result = future.result()
                    found[result.name] = result
                    self.progress.note(_line(result))
                    task.update(done)
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return [found[cell.name] for cell in todo]

    def cell(self, cell: Cell) -> CellResult:
        """One cell: hardened, certified, read back."""
        folder = cell_folder(self.out, cell)
        text = resolved_yaml(cell.policy)
        policy, model, run_dir = folder / "policy.yaml", folder / "model", folder / CERTIFICATION
        if not policy.is_file() or policy.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(policy, text)
        usage = folder / "usage.json"
        if not (model / "hardening.json").is_file() or not usage.is_file():
            command = ["harden", str(policy), "--out", str(model), "--fresh"]
            used, error = self._call(command, folder / "harden.log", (0,))
            if error:
                return CellResult(task=cell.task, variant=cell.variant, error=error)
            write_json(usage, used)
        command = ["certify", str(model), "--out", str(run_dir)]
        _, error = self._call(command, folder / "certify.log", tuple(EXIT_CODES.values()))
        if error:
            return CellResult(task=cell.task, variant=cell.variant, error=error)
        return _read(cell, load_report(run_dir), json.loads(usage.read_bytes()))

    def _call(self, arguments: list[str], log: Path, good: tuple[int, ...]) -> tuple[dict[str, float], str]:
        """Run one command of ours; what it used, and what it said if it failed."""
        if self._stopped:
            raise KeyboardInterrupt
        command = [sys.executable, "-m", "safeguard", *arguments, "--device", self.device, "--progress", "plain"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            )
            with self._lock:
                self._running.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            self._running.discard(process)
        used = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }
        return used, "" if process.returncode in good else _complaint(log, process.returncode)

    def _stop(self) -> None:
        self._stopped = True
        with self._lock:
            for process in self._running:
                process.terminate()


def run_study(
    study: Study, out: Path, *, jobs: int, device: str, only: Iterable[str], progress: Progress
) -> StudyResult:
    """Run a study, or those of its cells whose names match, and write ``study.json``.

    Args:
        only: shell-style patterns over ``task/variant``; none: all cells.

    Raises:
        PolicyFault: a cell is no valid policy.
        UsageFault: no cell matches.
        EnvironmentFault: this system cannot tell how much memory a process used.
    """
    if not hasattr(os, "wait4"):
        raise EnvironmentFault("the memory of a process cannot be measured here", fix="run studies on Linux or macOS")
    todo = chosen(list(cells(study)), list(only))
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
    write_json(out / TRUTH, result.model_dump(mode="json"))
    return result


def chosen(every: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose name matches one of the patterns."""
    found = [cell for cell in every if not only or any(fnmatchcase(cell.name, pattern) for pattern in only)]
    if not found:
        names = ", ".join(cell.name for cell in every[:4])
        raise UsageFault(f"no cell matches {', '.join(only)}", fix=f"cells are called {names}, …")
    return found


def _complaint(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if "error:" in line), lines[-1] if lines else "")
    return said.partition("error: ")[2] or said or f"ended with exit code {code}"


def _line(result: CellResult) -> str:
    if result.error:
        return f"{result.name}: {result.error}"
    return f"{result.name}: hardened in {duration(result.cpu_seconds)} of processor time, " + ", ".join(
        f"{look.probe} at {look.step}: {look.flagged}/{look.samples}" for look in result.looks
    )


def _read(cell: Cell, report: Report, usage: dict[str, float]) -> CellResult:
    looks = []
    for claim in report.claims:
        curves = {curve.role: curve.points for curve in claim.curves}
        base = {point.step: point.rate for point in curves.get("base", [])}
        looks += [
            Look(
                probe=claim.probe,
                concept=claim.concept,
                step=point.step,
                flagged=point.flagged,
                samples=point.samples,
                rate=point.rate,
                upper=point.upper,
                base=base.get(point.step),
            )
            for point in curves["hardened"]
        ]
    return CellResult(
        task=cell.task,
        variant=cell.variant,
        verdict=report.verdict,
        cpu_seconds=usage["cpu_seconds"],
        peak_bytes=int(usage["peak_bytes"]),
        looks=looks,
        utility=report.utility,
    )
