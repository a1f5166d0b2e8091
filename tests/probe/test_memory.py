"""What fits a device, as ``certify --plan --device-memory`` says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeguard import api
from safeguard.cli import run
from safeguard.diffusion.footprint import footprint
from safeguard.probe.memory import configurations


def test_every_way_of_training_is_counted_once(world: Path) -> None:
    plan = api.plan(world / "base", policy=world / "policy.yaml", device_memory=2**30)
    assert [need.work for need in plan.memory] == [
        "drawing",
        "fine-tuning: full, batches of 2",
        "fine-tuning: lora, batches of 2",
    ]
    drawing = footprint(configurations(world / "base"), {}).drawing
    assert (plan.memory[0].default, plan.memory[0].images) == (drawing.default, drawing.images)
    assert all(need.within == need.images for need in plan.memory)
    assert all(need.smallest <= need.default for need in plan.memory)
    assert plan.memory[1].default > plan.memory[2].default, "moments of all weights"
    assert api.plan(world / "base", policy=world / "policy.yaml").memory == []


def test_what_does_not_fit_is_said(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = api.plan(world / "base", policy=world / "policy.yaml", device_memory=1).memory
    assert {need.within for need in needed} == {None}
    command = ["certify", str(world / "base"), "--policy", str(world / "policy.yaml"), "--plan", "--device-memory"]
    assert run([*command, "1KiB"]) == 2, "no model can pass with four images, which is said after the memory"
    assert capsys.readouterr().out.count("does not fit") == 3
    assert run([*command, "24 GiB"]) == 2
    assert "does not fit" not in (shown := capsys.readouterr().out) and shown.count("fits") >= 3


@pytest.mark.parametrize("size", ["24", "lots", "-1GiB", "GiB"])
def test_a_size_is_a_number_with_a_unit(world: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certify", str(world / "base"), "--plan", f"--device-memory={size}"]) == 2
    assert "24GiB" in capsys.readouterr().err
