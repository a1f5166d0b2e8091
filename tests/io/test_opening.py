"""Names become directories, directories become pipelines, and nothing is loaded that was not checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeguard.errors import EnvironmentFault, ModelFault, UsageFault
from safeguard.io import opening
from safeguard.io.opening import no_network, open_pipeline, pick_device, resolve
from tests.io.test_preflight import cached_like_a_hub_download, edit
from tests.tiny import tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


class TestOpening:
    def test_weights_are_those_on_disk_and_nothing_else_is_on(self, pristine: Path) -> None:
        pipeline: Any = open_pipeline(pristine)
        expected = tiny_pipeline()
        for name in ("unet", "vae", "text_encoder"):
            module, original = getattr(pipeline, name), getattr(expected, name)
            assert not module.training and not any(value.requires_grad for value in module.parameters())
            state = module.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
        assert pipeline.safety_checker is None and not pipeline.config.requires_safety_checker
        assert pipeline.tokenizer("an axe").input_ids == expected.tokenizer("an axe").input_ids

    def test_draws_the_same_image_silently(self, pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
        def draw(pipeline: Any) -> Any:
            generator = torch.Generator().manual_seed(0)
            return pipeline("an axe", num_inference_steps=2, output_type="np", generator=generator).images

        assert (draw(open_pipeline(pristine)) == draw(tiny_pipeline())).all()
        assert capfd.readouterr().err == ""

    def test_sdxl(self, pristine_sdxl: Path) -> None:
        pipeline: Any = open_pipeline(pristine_sdxl)
        assert pipeline("an axe", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_dtype(self, pristine: Path, dtype: str) -> None:
        pipeline: Any = open_pipeline(pristine, dtype=dtype)
        assert {str(value.dtype) for value in pipeline.unet.parameters()} == {f"torch.{dtype}"}
        assert pipeline.text_encoder.dtype == pipeline.vae.dtype == getattr(torch, dtype)

    def test_unknown_dtype(self, pristine: Path) -> None:
        with pytest.raises(UsageFault, match="unknown dtype 'int8'"):
            open_pipeline(pristine, dtype="int8")

    def test_safety_checker_named_by_the_model_is_left_out(self, model: Path) -> None:
        edit(
            model / "model_index.json",
            safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
            feature_extractor=["transformers", "CLIPImageProcessor"],
            requires_safety_checker=True,
        )
        pipeline: Any = open_pipeline(model)
        assert pipeline.safety_checker is None and pipeline.feature_extractor is None

    def test_snapshot_of_a_hub_cache(self, model: Path, tmp_path: Path) -> None:
        assert open_pipeline(cached_like_a_hub_download(model, tmp_path / "cache")) is not None


class TestRefused:
    @pytest.mark.parametrize(
        "file", [UNET, "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    )
    def test_a_missing_weight_is_not_replaced_by_noise(self, model: Path, file: str) -> None:
        tensors = load_file(model / file)
        lost = sorted(tensors)[0]
        del tensors[lost]
        save_file(tensors, model / file, metadata={"format": "pt"})
        with pytest.raises(ModelFault, match=f"1 of its weights are missing, the first is '{lost}'"):
            open_pipeline(model)

    def test_a_weight_of_another_shape(self, model: Path) -> None:
        tensors = load_file(model / UNET)
        tensors["conv_out.weight"] = torch.zeros(3, 3)
        save_file(tensors, model / UNET, metadata={"format": "pt"})
        with pytest.raises(ModelFault, match=r"cannot be loaded.*conv_out\.weight"):
            open_pipeline(model)

    def test_a_weight_that_is_not_finite(self, model: Path) -> None:
        tensors = load_file(model / UNET)
        tensors["conv_in.bias"][3] = float("nan")
        save_file(tensors, model / UNET, metadata={"format": "pt"})
        with pytest.raises(ModelFault, match=r"'conv_in\.bias' holds NaN"):
            open_pipeline(model)

    def test_a_tokenizer_that_is_none(self, model: Path) -> None:
        (model / "tokenizer/tokenizer.json").write_text('{"version": "1.0"}')
        with pytest.raises(ModelFault, match="cannot be loaded"):
            open_pipeline(model)


class TestSwapped:
    """Time of check to time of use."""

    @pytest.mark.parametrize("change", ["weights", "new file", "removed file"])
    def test_a_change_while_loading_is_noticed(self, model: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
        load = opening._load

        def load_and_swap(*arguments: Any) -> Any:
            pipeline = load(*arguments)
            if change == "weights":
                data = bytearray((model / UNET).read_bytes())
                data[-1] ^= 1
                (model / UNET).write_bytes(data)
            elif change == "new file":
                (model / "pipeline.py").write_text("")
            else:
                (model / "scheduler/scheduler_config.json").unlink()
            return pipeline

        monkeypatch.setattr(opening, "_load", load_and_swap)
        with pytest.raises(ModelFault, match="changed while it was opened"):
            open_pipeline(model)

    def test_a_file_overwritten_later_does_not_reach_the_running_model(self, model: Path) -> None:
        pipeline: Any = open_pipeline(model)
        before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
        for path in model.rglob("*.safetensors"):
            size = path.stat().st_size
            with path.open("r+b") as file:  # in place, the case a memory map would show
                file.write(b"\x7f" * size)
        assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
        if Path("/proc/self/maps").exists():
            assert str(model) not in Path("/proc/self/maps").read_text()


def test_no_request_leaves_while_loading() -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with no_network(), pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint="http://127.0.0.1:9").model_info("owner/name")


class TestDevice:
    def test_names(self) -> None:
        assert pick_device("cpu") == "cpu"
        assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
        for name in ("gpu", "cuda:", "cuda:x", "CPU", "mps", ""):
            with pytest.raises(UsageFault, match="unknown device"):
                pick_device(name)

    def test_missing_cuda_says_what_is_there(self) -> None:
        absent = f"cuda:{torch.cuda.device_count()}"
        with pytest.raises(EnvironmentFault, match=f"there is no {absent} here; there is cpu") as caught:
            pick_device(absent)
        assert caught.value.exit_code == 4

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_cuda(self, pristine: Path) -> None:
        assert pick_device("cuda:0") == "cuda:0"
        pipeline: Any = open_pipeline(pristine, device=pick_device("cuda"))
        assert pipeline.unet.device.type == "cuda"


class TestResolve:
    def test_existing_directory(self, pristine: Path) -> None:
        assert resolve(str(pristine), offline=True) == pristine

    def test_an_existing_directory_comes_before_a_hub_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "owner" / "name").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert resolve("owner/name", offline=False) == Path("owner/name")

    @pytest.mark.parametrize("spec", ["./nowhere", "/no/where", "nowhere", "a/b/c", "../up/name", "", "owner/"])
    def test_no_such_directory(self, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelFault, match="no such directory"):
            resolve(spec, offline=True)

    def test_a_directory_has_no_revision(self, pristine: Path) -> None:
        with pytest.raises(UsageFault, match="has no revision"):
            resolve(str(pristine), "main", offline=True)

    def test_offline_and_never_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(EnvironmentFault, match="not downloaded yet") as caught:
            resolve("owner/name-that-nobody-has", offline=True)
        assert "local copy" in caught.value.fix


# -- a hub, in so far as it takes to download from one ----------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIENT = """
import sys, json
from safeguard.errors import SafeguardError
from safeguard.io.opening import resolve
answers = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        answers[name] = [str(resolve(name, revision, offline=False)), ""]
    except SafeguardError as error:
        answers[name] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


def hub(model: Path) -> type[BaseHTTPRequestHandler]:
    """Serves ``owner/fine``; ``owner/gated``, ``owner/missing`` and unknown revisions fail as the hub lets them."""
    present = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}

    class Hub(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/gated" in path:
                self.answer(403, b"{}", X_Error_Code="GatedRepo")
            elif "/missing" in path:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif "/old" in path:
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif "/resolve/" in path:
                name = path.partition(f"/resolve/{COMMIT}/")[2]
                self.answer(200, present[name], ETag=f'"{abs(hash(name))}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in path:
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": str(abs(hash(name)))}
                    for name, data in present.items()
                ]
                self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
            else:
                info = {"id": "owner/fine", "sha": COMMIT, "siblings": [{"rfilename": name} for name in present]}
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    return Hub


@pytest.fixture
def endpoint(model: Path) -> Iterator[str]:
    for name in ("pipeline.py", "model.ckpt", "one-file.safetensors", "unet/x.bin", "unet/x.fp16.safetensors"):
        (model / name).write_text("not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub(model))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(endpoint: str, home: Path, *wanted: tuple[str, str | None]) -> dict[str, list[str]]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(wanted)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[str]] = json.loads(done.stdout)
    return answers


def test_download(endpoint: str, tmp_path: Path, pristine: Path) -> None:
    answers = ask(
        endpoint, tmp_path, ("owner/fine", None), ("owner/gated", None), ("owner/missing", None), ("owner/old", "v9")
    )
    place = Path(answers["owner/fine"][0])
    assert place.name == COMMIT
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {path.relative_to(pristine).as_posix() for path in pristine.rglob("*") if path.is_file()}
    assert open_pipeline(place) is not None

    assert answers["owner/gated"][0] == "ModelFault" and "accept its terms" in answers["owner/gated"][1]
    assert answers["owner/missing"][0] == "ModelFault" and "no such model" in answers["owner/missing"][1]
    assert answers["owner/old"][0] == "ModelFault" and "no revision 'v9'" in answers["owner/old"][1]


def test_unreachable_hub(tmp_path: Path) -> None:
    kind, message = ask("http://127.0.0.1:9", tmp_path, ("owner/fine", None))["owner/fine"]
    assert kind == "EnvironmentFault"
    assert "owner/fine: the hub cannot be reached" in message
