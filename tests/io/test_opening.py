"""Directories become pipelines; nothing is loaded that was not checked, and no weight is read twice."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from safeguard.errors import EnvironmentFault, ModelFault, UsageFault
from safeguard.io import formats, opening
from safeguard.io.formats import read_header
from safeguard.io.manifest import manifest, model_digest
from safeguard.io.opening import open_directory, open_pipeline, pick_device
from safeguard.io.weights import WeightReader
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


def counting(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes read of every weight file from now on, by name."""
    counts: dict[str, int] = {}

    class Counting(io.BufferedReader):
        def read(self, *arguments: Any) -> bytes:
            return self._count(super().read(*arguments))

        def readinto(self, buffer: Any) -> int:
            size = super().readinto(buffer)
            counts[self.name] = counts.get(self.name, 0) + size
            return size

        def _count(self, data: bytes) -> bytes:
            counts[self.name] = counts.get(self.name, 0) + len(data)
            return data

    monkeypatch.setattr(formats, "open_weights", lambda path: Counting(io.FileIO(str(path))))
    return counts


class TestReadOnce:
    @pytest.mark.parametrize("sharded", [False, True])
    def test_weights_are_read_once_and_headers_before(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
    ) -> None:
        if sharded:
            weights = model / UNET
            weights.rename(shard := weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
            index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(shard), shard.name)}
            (model / f"{UNET}.index.json").write_text(json.dumps(index))
        counts = counting(monkeypatch)
        open_directory(model)
        for path in model.rglob("*.safetensors"):
            headers = path.stat().st_size - sum(slot.stop - slot.start for slot in read_header(path).values())
            # the pre-flight looks at headers, twice, and at the denoiser's once more for erasers
            assert path.stat().st_size <= counts[str(path)] <= path.stat().st_size + 6 * headers

    def test_a_library_reads_no_weights(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once our one pass is over, the files are not needed."""
        expected: Any = open_pipeline(model)
        component = WeightReader.component

        def read_and_empty(self: WeightReader, name: str) -> Any:
            found = component(self, name)
            for path in (self.directory / name).glob("*.safetensors"):
                path.write_bytes(b"")
            return found

        monkeypatch.setattr(WeightReader, "component", read_and_empty)
        monkeypatch.setattr(WeightReader, "rest", lambda self: None)
        monkeypatch.setattr(opening, "difference", lambda before, after: [])
        pipeline: Any = open_pipeline(model)
        for name in ("unet", "vae", "text_encoder"):
            state = getattr(expected, name).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in getattr(pipeline, name).state_dict().items())

    def test_digests_are_those_of_the_directory(self, model: Path) -> None:
        (model / "extra").mkdir()
        save_file({"x": torch.zeros(3)}, model / "extra" / "x.safetensors")
        opened = open_directory(model)
        assert opened.files == manifest(model) and opened.digest == model_digest(model)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_the_weights_are_those_the_libraries_load(self, model: Path, dtype: str) -> None:
        """Also with the names of older files: attention of an autoencoder, a text encoder's prefix."""
        older(model)
        ours: Any = open_pipeline(model, dtype=dtype)
        kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "text_encoder": CLIPTextModel}
        for name, kind in kinds.items():
            theirs: Any = kind.from_pretrained(model / name, dtype=getattr(torch, dtype))
            assert ours.components[name].state_dict().keys() == theirs.state_dict().keys()
            if name != "text_encoder":
                known, settings = (dict(one.config) for one in (ours.components[name], theirs))
                assert known == {key: value for key, value in settings.items() if key != "_name_or_path"}
            state = ours.components[name].state_dict()
            for key, expected in theirs.state_dict().items():
                assert torch.equal(state[key], expected) and state[key].dtype == expected.dtype, key
            for one, two in zip(ours.components[name].buffers(), theirs.buffers(), strict=True):
                assert torch.equal(one, two) and one.dtype == two.dtype

    def test_says_in_which_type_each_tensor_is_stored(self, model: Path) -> None:
        older(model)
        tensors = load_file(model / UNET)
        halved = {name: value.half() if "attn2" in name else value for name, value in tensors.items()}
        save_file(halved | {"conv_in.bias": tensors["conv_in.bias"].bfloat16()}, model / UNET)
        opened = open_directory(model)
        pipeline: Any = opened.pipeline
        assert all(
            opened.stored[f"unet.{name}"] == (torch.float16 if "attn2" in name else torch.float32)
            for name in tensors
            if name != "conv_in.bias"
        )
        assert opened.stored["unet.conv_in.bias"] == torch.bfloat16
        assert pipeline.unet.conv_in.bias.dtype == pipeline.unet.conv_in.weight.dtype == torch.float32
        state = pipeline.text_encoder.state_dict()
        assert {opened.stored[f"text_encoder.{name}"] for name in state} == {torch.float16}


def older(model: Path) -> None:
    """Rename tensors to what files of earlier years call them; the text encoder's are halved."""
    encoder, vae = model / "text_encoder/model.safetensors", model / "vae/diffusion_pytorch_model.safetensors"
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    assert any("attentions.0.to_q" in name for name in tensors)
    for new, old in renamed.items():
        tensors = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for name, value in tensors.items()
        }
    save_file(tensors, vae, metadata={"format": "pt"})
    short = {name.removeprefix("text_model."): value.half() for name, value in load_file(encoder).items()}
    save_file({f"text_model.{name}": value for name, value in short.items()}, encoder, metadata={"format": "pt"})


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


class TestDevice:
    def test_names(self) -> None:
        assert pick_device("cpu") == "cpu"
        assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
        for name in ("gpu", "cuda:", "cuda:x", "CPU", "mps", ""):
            with pytest.raises(UsageFault, match="unknown device"):
                pick_device(name)

    def test_the_help_names_what_can_be_chosen(self) -> None:
        from safeguard.cli.common import device_option

        (option,) = device_option(lambda device: None).__click_params__
        for name in re.findall(r"\b(?:cpu|cuda|mps|xpu|auto)\b", option.help):
            with contextlib.suppress(EnvironmentFault):  # none here, but a device that can be had elsewhere
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
