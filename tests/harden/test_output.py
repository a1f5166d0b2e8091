"""What a hardening reads is never written over, whatever is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from safeguard.cli import run
from safeguard.errors import UsageFault
from safeguard.harden.inputs import check_output
from safeguard.policy.loading import load_policy
from tests.io.test_preflight import cached_like_a_hub_download
from tests.probe.conftest import world

__all__ = ["world"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["base", "base/new", ".", "link", "link/unet", "base/../base", "cache", "clip", "m/.."])
@pytest.mark.parametrize("named", ["absolute", "relative"])
def test_an_output_over_an_input_is_refused_before_work(
    world: Path, monkeypatch: pytest.MonkeyPatch, out: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "link").symlink_to("base")
    monkeypatch.chdir(world)
    if named == "relative":
        policy = yaml.safe_load((world / "policy.yaml").read_text()) | {"model": "base"}
        (world / "policy.yaml").write_text(yaml.safe_dump(policy))
    before = contents(world)
    target = str(world / out) if named == "absolute" else out
    assert run(["harden", "policy.yaml", "--out", target, "--overwrite", "--progress", "none"]) == 2
    assert "must stay as it is" in capsys.readouterr().err
    assert contents(world) == before


def test_a_hub_snapshot_is_refused_by_any_path_into_it(world: Path) -> None:
    snapshot = cached_like_a_hub_download(world / "base", world / "hub")
    policy = load_policy(world / "policy.yaml")
    (world / "elsewhere").symlink_to(snapshot)
    repository = snapshot.parents[1]
    for out in (
        snapshot,
        snapshot / "new",
        repository / "snapshots" / "main",
        repository / "blobs",
        world / "elsewhere",
    ):
        with pytest.raises(UsageFault, match="the base model"):
            check_output(out, world / "policy.yaml", policy, snapshot)
    with pytest.raises(UsageFault, match="the base model"):
        check_output(Path(os.path.relpath(snapshot)), world / "policy.yaml", policy, world / "elsewhere")
    check_output(world / "hardened", world / "policy.yaml", policy, snapshot)
