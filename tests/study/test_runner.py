"""A study on the reference model, run as a user does."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from safeguard.cli import run
from safeguard.results.contact_sheets import CELL
from safeguard.study.pictures import LABEL, LINE
from safeguard.study.results import StudyResult
from tests.study.small import STUDY, write


def test_a_study_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))
    command = ["study", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--jobs", "2", "--progress", "none"]
    command += ["--seed", "1"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "study.md").read_text(encoding="utf-8")
    found = StudyResult.model_validate_json((tmp_path / "out" / "study.json").read_bytes())
    with Image.open(tmp_path / "out" / "study.png") as pictures:
        colours = pictures.convert("RGB").crop((LABEL, LINE, LABEL + CELL, LINE + CELL)).getcolors()
    assert colours is None or len(colours) > 16, "the first row shows images"
    done, failed = found.cells
    assert (done.variant, failed.variant) == ("uce", "nowhere")
    assert (done.seed, failed.seed) == (1, 1)
    assert [(observed.probe, observed.step) for observed in done.observations] == [
        ("released", 0),
        *(("clean", step) for step in range(3)),
    ]
    assert {observed.samples for observed in done.observations} == {8}
    losses = [observed.training_loss for observed in done.observations if observed.training_loss is not None]
    assert len(set(losses)) == 3, "each checkpoint has a loss of its own"
    assert done.observations[0].base is not None and done.observations[0].base > 0.8
    assert done.observations[0].rate < done.observations[0].base
    assert done.cpu_seconds > 1 and done.peak_bytes > 100e6
    assert "nowhere" in failed.error and not failed.observations
    curves = ElementTree.parse(tmp_path / "out" / "study.svg")
    assert "Object: axe: clean" in "".join(curves.getroot().itertext())
    row = next(line for line in printed.splitlines() if line.startswith("| Closed form \\| UCE |"))
    assert f"| {done.observations[0].flagged} ({done.observations[0].upper:.0%}) |" in row
    assert f"| {losses[0]:.3f} → {losses[2]:.3f} |" in row
    assert any(line.startswith("| No model | ") and "nowhere" in line for line in printed.splitlines())

    record = tmp_path / "out" / "cells" / "axe" / "uce" / "seed-1" / "model" / "hardening.json"
    assert json.loads(record.read_bytes())["seed"] == 1
    before = record.stat().st_mtime_ns
    assert run([*command, "--only", "axe/uce"]) == 0
    again = StudyResult.model_validate_json((tmp_path / "out" / "study.json").read_bytes())
    assert record.stat().st_mtime_ns == before and again.cells == [done]

    write(tmp_path, STUDY.replace("lam: 0.2", "lam: 0.4"))
    assert run([*command, "--only", "axe/uce"]) == 0
    assert json.loads(record.read_bytes())["unlearner"]["lam"] == 0.4


def test_a_seed_that_no_policy_may_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "'--seed'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_no_jobs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert "at least one" in capsys.readouterr().err
