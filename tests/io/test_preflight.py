"""What an honest directory is recognised as, and how incomplete or unsupported ones are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import ModelFault
from safeguard.io import contents
from safeguard.io.opening import open_pipeline
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


def both_weights(model: Path) -> None:
    shard = model / "unet/diffusion_pytorch_model-00001-of-00001.safetensors"
    shutil.copy(model / "unet/diffusion_pytorch_model.safetensors", shard)
    (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv_in.weight": shard.name}})
    )


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
    "learned variance": (config("unet/config.json", out_channels=8), "out_channels is 8"),
    "two sets of weights": (both_weights, "two sets of weights"),
    "oblong": (config("unet/config.json", sample_size=[8, 16]), r"sample_size is \[8, 16\]"),
    "lcm": (index(scheduler=["diffusers", "LCMScheduler"]), "'diffusers.LCMScheduler' is not supported"),
}

ADVICE = {
    "lcm": "DDIMScheduler",
    "oblong": "square",
    "width is a list": "one width",
    "inpainting denoiser": "text-to-image",
    "other text encoder": "text encoders",
    "time embedding": "denoiser",
    "no index": "from_single_file",
    "component missing": "completely",
    "image encoder": "without that component",
    "sample prediction": "epsilon",
    "two sets of weights": "delete",
}
"""What the advice for a case must speak of."""


@pytest.mark.parametrize("case", REFUSED)
def test_refused(model: Path, case: str) -> None:
    break_it, reason = REFUSED[case]
    break_it(model)
    with pytest.raises(ModelFault, match=reason) as caught:
        inspect(model)
    assert caught.value.exit_code == 2
    assert caught.value.where.startswith(str(model)) and ADVICE.get(case, "") in caught.value.fix
    assert caught.value.fix and "JSON only" not in caught.value.fix, "that is about other problems"


SCHEDULERS = {
    "learned variance": ({"variance_type": "learned_range"}, "variance_type", {"variance_type": "fixed_small"}),
    "learned": ({"variance_type": "learned"}, "variance_type", {"variance_type": "fixed_small"}),
    "two grids": (
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "use_karras_sigmas and use_beta_sigmas",
        {"use_beta_sigmas": False},
    ),
    "a schedule nobody knows": ({"beta_schedule": "wavy"}, "wavy", {"beta_schedule": "scaled_linear"}),
    "no steps": ({"num_train_timesteps": 0}, "num_train_timesteps is 0", {"num_train_timesteps": 1000}),
    "betas that are none": ({"beta_end": 1.7}, "not finite", {"beta_end": 0.012}),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_scheduler_that_cannot_run_is_refused_and_the_advice_works(model: Path, case: str) -> None:
    settings, reason, cure = SCHEDULERS[case]
    edit(model / "scheduler/scheduler_config.json", **settings)
    with pytest.raises(ModelFault, match=reason) as caught:
        open_pipeline(model)
    assert caught.value.where == str(model / "scheduler/scheduler_config.json") and caught.value.fix
    edit(model / "scheduler/scheduler_config.json", **cure)
    assert open_pipeline(model)


def add_token(model: Path) -> None:
    """One token more than the text encoder has embeddings for."""
    value = json.loads((model / "tokenizer/tokenizer.json").read_text())
    token = {"id": 516, "content": "<weapon>", "single_word": False, "lstrip": False, "rstrip": False}
    value["added_tokens"].append(token | {"normalized": False, "special": False})
    (model / "tokenizer/tokenizer.json").write_text(json.dumps(value))


TOKENIZERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no length": (config("tokenizer/tokenizer_config.json", model_max_length=...), "missing", "tokenizer_config.json"),
    "too long": (config("tokenizer/tokenizer_config.json", model_max_length=77), "is 77", "tokenizer_config.json"),
    "too short": (config("tokenizer/tokenizer_config.json", model_max_length=2), "is 2", "tokenizer_config.json"),
    "a new token": (add_token, "'<weapon>' has the number 516", "tokenizer.json"),
    "a new padding": (config("tokenizer/tokenizer_config.json", pad_token="<pad>"), "'<pad>'", "tokenizer.json"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_its_encoder_cannot_follow_is_refused(model: Path, case: str) -> None:
    break_it, reason, file = TOKENIZERS[case]
    break_it(model)
    with pytest.raises(ModelFault, match=reason) as caught:
        open_pipeline(model)
    assert caught.value.where == str(model / "tokenizer" / file) and caught.value.fix
    if "length" in reason or "is " in reason:
        assert "16" in caught.value.fix
    edit(model / "tokenizer/tokenizer_config.json", model_max_length=16)
    if file == "tokenizer_config.json":
        assert open_pipeline(model), "the advice works"


def test_an_embedding_that_is_missing_is_refused(model: Path) -> None:
    edit(model / "text_encoder/config.json", vocab_size=500)
    with pytest.raises(ModelFault, match="embeddings for 500"):
        open_pipeline(model)


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
