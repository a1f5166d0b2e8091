"""A saved pipeline opens again with the same weights, gives the same bytes each time, and is never half-written."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from safeguard.errors import EnvironmentFault, TrainingFault, UsageFault
from safeguard.io.manifest import manifest
from safeguard.io.opening import open_pipeline
from safeguard.io.preflight import inspect
from safeguard.io.saving import check_target, save_pipeline
from tests.tiny import tiny_pipeline, tiny_sdxl_pipeline

EXTRA = {"hardening.json": "{}", "policy.resolved.yaml": "name: ⚔\n"}


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def listing(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


class TestWritten:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_opens_again_with_the_same_weights(self, tmp_path: Path, dtype: torch.dtype) -> None:
        pipeline = tiny_pipeline().to(dtype)
        save_pipeline(pipeline, tmp_path / "m", EXTRA)
        again: Any = open_pipeline(tmp_path / "m", dtype=str(dtype).removeprefix("torch."))
        before, after = weights(pipeline), weights(again)
        assert before.keys() == after.keys()
        assert all(
            after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items()
        )

    def test_dtype_on_disk_is_the_pipelines(self, tmp_path: Path) -> None:
        save_pipeline(tiny_pipeline().to(torch.float16), tmp_path / "m", {})
        half = (tmp_path / "m/unet/diffusion_pytorch_model.safetensors").stat().st_size
        save_pipeline(tiny_pipeline(), tmp_path / "n", {})
        assert half < 0.6 * (tmp_path / "n/unet/diffusion_pytorch_model.safetensors").stat().st_size

    def test_sdxl(self, tmp_path: Path) -> None:
        save_pipeline(tiny_sdxl_pipeline(), tmp_path / "m", EXTRA)
        assert inspect(tmp_path / "m").architecture == "sdxl"

    def test_returns_the_manifest_with_the_extra_files(self, tmp_path: Path) -> None:
        written = save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)
        assert written == manifest(tmp_path / "m")
        assert {"model_index.json", "unet/config.json", *EXTRA} <= written.keys()
        assert (tmp_path / "m/policy.resolved.yaml").read_text(encoding="utf-8") == "name: ⚔\n"

    def test_same_model_same_bytes_wherever_it_came_from_and_after_use(self, tmp_path: Path) -> None:
        first = save_pipeline(tiny_pipeline(), tmp_path / "a", EXTRA)
        pipeline: Any = open_pipeline(tmp_path / "a")
        pipeline("an axe", num_inference_steps=1, output_type="np")
        assert save_pipeline(pipeline, tmp_path / "elsewhere" / "b", EXTRA) == first

    def test_no_path_of_this_machine_is_written(self, tmp_path: Path) -> None:
        save_pipeline(tiny_pipeline(), tmp_path / "a", {})
        save_pipeline(open_pipeline(tmp_path / "a"), tmp_path / "b", {})
        assert not [path for path in (tmp_path / "b").rglob("*.json") if str(tmp_path) in path.read_text()]

    def test_files_are_readable_by_others(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        save_pipeline(tiny_pipeline(), tmp_path / "m", {})
        modes = {path.stat().st_mode for path in (tmp_path / "m").rglob("*") if path.is_file()}
        assert modes == {(tmp_path / "plain").stat().st_mode}

    def test_over_the_model_it_was_opened_from(self, tmp_path: Path) -> None:
        save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)
        pipeline: Any = open_pipeline(tmp_path / "m")
        with torch.no_grad():
            pipeline.unet.conv_in.bias += 1
        save_pipeline(pipeline, tmp_path / "m", EXTRA)
        again: Any = open_pipeline(tmp_path / "m")
        assert torch.equal(again.unet.conv_in.bias, pipeline.unet.conv_in.bias)


class TestTarget:
    def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(self, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentFault, match="cannot write m"):
            check_target(Path("/proc/m"), overwrite=False)
        check_target(tmp_path / "new" / "m", overwrite=False)
        assert listing(tmp_path) == []

    def test_ours_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA | {"old.txt": "x"})
        save_pipeline(tiny_pipeline(seed=1), tmp_path / "m", EXTRA)
        assert "old.txt" not in listing(tmp_path / "m")

    def test_an_empty_directory_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)

    def test_anything_else_is_kept_unless_overwrite(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m/thesis.txt").write_text("precious")
        with pytest.raises(UsageFault, match="not empty"):
            save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)
        assert listing(tmp_path / "m") == ["thesis.txt"]
        save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA, overwrite=True)
        assert "thesis.txt" not in listing(tmp_path / "m")

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "m").write_text("precious")
        with pytest.raises(UsageFault, match="a file, not a directory"):
            save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA, overwrite=True)

    @pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".", "..", "unet", "model_index.json"])
    def test_extra_files_lie_beside_the_components(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageFault, match="cannot be the name"):
            save_pipeline(tiny_pipeline(), tmp_path / "m", {name: ""})
        assert listing(tmp_path) == []


class Space(NamedTuple):
    total: int
    used: int
    free: int


class TestNothingHalfWritten:
    def test_no_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(10**9, 10**9 - 10**6, 10**6))
        with pytest.raises(EnvironmentFault, match=r"needs 0\.1 GB, 0\.0 GB are free"):
            save_pipeline(tiny_pipeline(), tmp_path / "deep" / "m", EXTRA)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
    def test_not_finite(self, tmp_path: Path, component: str) -> None:
        pipeline: Any = tiny_pipeline()
        name, parameter = next(getattr(pipeline, component).named_parameters())
        parameter.data.flatten()[0] = float("inf")
        with pytest.raises(TrainingFault, match=f"{component}.{name} holds NaN"):
            save_pipeline(pipeline, tmp_path / "m", EXTRA)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("function", ["fsync", "replace"])
    def test_disk_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
        before = save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)

        def full(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, function, full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            save_pipeline(tiny_pipeline(seed=1), tmp_path / "m", EXTRA)
        monkeypatch.undo()
        assert manifest(tmp_path / "m") == before
        assert os.listdir(tmp_path) == ["m"]

    def test_killed_after_the_weights(self, tmp_path: Path) -> None:
        before = save_pipeline(tiny_pipeline(), tmp_path / "m", EXTRA)
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m")], check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert manifest(tmp_path / "m") == before
        save_pipeline(tiny_pipeline(seed=1), tmp_path / "m", EXTRA)
        assert os.listdir(tmp_path) == ["m"]


KILLED = """
import os, signal, sys
from pathlib import Path
from safeguard.io import saving
from tests.tiny import tiny_pipeline
def die(path):
    os.kill(os.getpid(), signal.SIGKILL)
saving._forget_origin = die
saving.save_pipeline(tiny_pipeline(seed=1), Path(sys.argv[1]), {"hardening.json": "{}"})
"""
