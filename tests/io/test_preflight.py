"""What an honest directory is recognised as, and how incomplete or unsupported ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import ModelFault
from safeguard.io import contents
from safeguard.io.preflight import inspect


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; ``...`` removes the key."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


def cached_like_a_hub_download(model: Path, cache: Path) -> Path:
    """The layout of a Hugging Face cache: snapshots of links, blobs of content."""
    repository = cache / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(item for item in model.rglob("*") if item.is_file())):
        path.rename(repository / "blobs" / f"blob{number}")
        link = repository / "snapshots" / "0123abc" / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        depth = len(link.relative_to(repository / "snapshots").parts)
        link.symlink_to(Path(*[".."] * depth) / "blobs" / f"blob{number}")
    return repository / "snapshots" / "0123abc"


class TestAccepted:
    def test_stable_diffusion(self, pristine: Path) -> None:
        info = inspect(pristine)
        assert (info.pipeline, info.architecture) == ("StableDiffusionPipeline", "sd1")
        assert (info.prediction_type, info.sample_size) == ("epsilon", 8)
        assert info.components == {
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "scheduler": "DDIMScheduler",
            "tokenizer": "CLIPTokenizer",
            "text_encoder": "CLIPTextModel",
        }

    def test_stable_diffusion_xl(self, pristine_sdxl: Path) -> None:
        info = inspect(pristine_sdxl)
        assert (info.pipeline, info.architecture) == ("StableDiffusionXLPipeline", "sdxl")
        assert info.components["text_encoder_2"] == "CLIPTextModelWithProjection"

    def test_stable_diffusion_2_is_told_by_its_width(self, model: Path) -> None:
        edit(model / "unet/config.json", cross_attention_dim=1024)
        edit(model / "text_encoder/config.json", hidden_size=1024)
        edit(model / "scheduler/scheduler_config.json", prediction_type="v_prediction")
        info = inspect(model)
        assert (info.architecture, info.prediction_type) == ("sd2", "v_prediction")

    def test_published_models_with_safety_checker_and_old_settings(self, model: Path) -> None:
        edit(
            model / "model_index.json",
            safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
            feature_extractor=["transformers", "CLIPFeatureExtractor"],
            requires_safety_checker=True,
            _name_or_path="somewhere/else",
            image_encoder=...,
        )
        edit(model / "text_encoder/config.json", _attn_implementation_autoset=True, auto_map=None)
        assert "safety_checker" not in inspect(model).components

    def test_snapshot_in_a_hub_cache(self, model: Path, tmp_path: Path) -> None:
        snapshot = cached_like_a_hub_download(model, tmp_path / "cache")
        assert inspect(snapshot).architecture == "sd1"

    def test_shards_and_links_inside(self, model: Path) -> None:
        weights = model / "unet/diffusion_pytorch_model.safetensors"
        weights.rename(model / "unet/diffusion_pytorch_model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
        (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        (model / "LICENSE").write_text("Apache-2.0")
        (model / "COPYING").symlink_to("LICENSE")
        assert inspect(model).architecture == "sd1"

    def test_imports_neither_torch_nor_diffusers(self, pristine: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from safeguard.io.preflight import inspect\n"
            "inspect(Path(sys.argv[1]))\n"
            "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code, str(pristine)], check=True)


def index(**changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / "model_index.json", **changes)


def config(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / name, **changes)


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (without("model_index.json"), "no model_index.json"),
    "flux": (
        index(_class_name="FluxPipeline"),
        "'FluxPipeline' has a transformer backbone, which is not supported yet",
    ),
    "sd3": (index(_class_name="StableDiffusion3Pipeline"), "not supported yet"),
    "pixart": (index(_class_name="PixArtSigmaPipeline"), "not supported yet"),
    "inpainting pipeline": (index(_class_name="StableDiffusionInpaintPipeline"), "is not supported"),
    "no class": (index(_class_name=...), "pipeline class None is not supported"),
    "component missing": (index(unet=...), "component 'unet' is missing"),
    "component null": (index(text_encoder=[None, None]), "component 'text_encoder' is missing"),
    "sd claims sdxl": (index(_class_name="StableDiffusionXLPipeline"), "'text_encoder_2' is missing"),
    "image encoder": (index(image_encoder=["transformers", "CLIPVisionModelWithProjection"]), "'image_encoder'"),
    "weights missing": (without("vae/diffusion_pytorch_model.safetensors"), "'vae' is incomplete"),
    "config missing": (without("unet/config.json"), "'unet' is incomplete"),
    "vocabulary missing": (without("tokenizer/tokenizer.json"), "'tokenizer' is incomplete"),
    "configs disagree": (config("unet/config.json", _class_name="UNet2DModel"), "model_index.json says"),
    "tokenizer disagrees": (
        config("tokenizer/tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        "says 'T5Tokenizer'",
    ),
    "sample prediction": (
        config("scheduler/scheduler_config.json", prediction_type="sample"),
        "'sample' is not supported",
    ),
    "no size": (config("unet/config.json", sample_size=...), "sample_size is None, not a size"),
    "width is a list": (config("unet/config.json", cross_attention_dim=[32, 32]), "not a size"),
    "other text encoder": (config("text_encoder/config.json", hidden_size=64), "is 32, the text encoders give 64"),
    "time embedding": (config("unet/config.json", addition_embed_type="text_time"), "does not belong to"),
    "inpainting denoiser": (config("unet/config.json", in_channels=9), "inpainting"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(model: Path, case: str) -> None:
    break_it, reason = REFUSED[case]
    break_it(model)
    with pytest.raises(ModelFault, match=reason) as caught:
        inspect(model)
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith(str(model)) and caught.value.fix


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match="no such directory"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ModelFault, match="no such directory"):
        inspect(tmp_path / "file")


class TestSanity:
    def test_number_of_files(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "MAX_FILES", 9)
        with pytest.raises(ModelFault, match="more than 9 files"):
            inspect(model)

    def test_bytes(self, model: Path) -> None:
        with (model / "README.md").open("wb") as file:
            file.truncate(contents.MAX_BYTES)  # sparse
        with pytest.raises(ModelFault, match="200 GB"):
            inspect(model)

    def test_depth(self, model: Path) -> None:
        (model / "/".join("d" * (contents.MAX_DEPTH + 1))).mkdir(parents=True)
        with pytest.raises(ModelFault, match="nested"):
            inspect(model)
