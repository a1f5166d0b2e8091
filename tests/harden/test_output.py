"""What a hardening reads is never written over, whatever is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safeguard.cli import run
from safeguard.errors import UsageFault
from safeguard.harden.inputs import check_output
from safeguard.policy.loading import load_policy
from tests.harden.conftest import write_policy
from tests.io.test_preflight import cached_like_a_hub_download


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["base", "base/new", ".", "link", "link/unet", "base/../base", "cache", "clip", "m/.."])
@pytest.mark.parametrize("named", ["absolute", "relative"])
def test_an_output_over_an_input_is_refused_before_work(
    desk: Path, monkeypatch: pytest.MonkeyPatch, out: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "link").symlink_to("base")
    monkeypatch.chdir(desk)
    if named == "relative":
        write_policy(desk, model="base")
    before = contents(desk)
    target = str(desk / out) if named == "absolute" else out
    assert run(["harden", "policy.yaml", "--out", target, "--overwrite", "--progress", "none"]) == 2
    assert "must stay as it is" in capsys.readouterr().err
    assert contents(desk) == before


def test_a_hub_snapshot_is_refused_by_any_path_into_it(desk: Path) -> None:
    snapshot = cached_like_a_hub_download(desk / "base", desk / "hub")
    policy = load_policy(desk / "policy.yaml")
    (desk / "elsewhere").symlink_to(snapshot)
    repository = snapshot.parents[1]
    for out in (
        snapshot,
        snapshot / "new",
        repository / "snapshots" / "main",
        repository / "blobs",
        desk / "elsewhere",
    ):
        with pytest.raises(UsageFault, match="the base model"):
            check_output(out, desk / "policy.yaml", policy, snapshot)
    with pytest.raises(UsageFault, match="the base model"):
        check_output(Path(os.path.relpath(snapshot)), desk / "policy.yaml", policy, desk / "elsewhere")
    check_output(desk / "hardened", desk / "policy.yaml", policy, snapshot)
