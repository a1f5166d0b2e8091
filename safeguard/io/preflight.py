"""A static check of a model directory, before diffusers or torch see a byte of it.

Loading a diffusers directory runs what the directory names: a library, a class, code beside the weights, a pickle.
So nothing is loaded that is not on the short lists below, and the whole directory is refused when it holds anything
that could be run or unpickled, even where diffusers would not touch it. Nothing here imports torch or diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeguard.diffusion.architectures import ERASER_KEY, Architecture, PredictionType, unsupported
from safeguard.errors import ModelFault
from safeguard.io.contents import check_contents, refuse
from safeguard.io.formats import read_header, read_json

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_SD = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
    "tokenizer": TOKENIZERS,
    "text_encoder": ("CLIPTextModel",),
}
_SDXL = _SD | {"tokenizer_2": TOKENIZERS, "text_encoder_2": ("CLIPTextModelWithProjection",)}
PIPELINES = {"StableDiffusionPipeline": _SD, "StableDiffusionXLPipeline": _SDXL}
"""Pipeline -> component -> classes it may have. All of them are needed and loaded, nothing else is."""

LEFT_OUT: dict[str, tuple[tuple[str, str], ...]] = {
    "safety_checker": (("stable_diffusion", "StableDiffusionSafetyChecker"),),
    "feature_extractor": (("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor")),
    "image_encoder": (),
}
"""Components that ``model_index.json`` may name, or set to null, and that are not loaded."""

_SETTINGS = {
    "_class_name", "_diffusers_version", "_name_or_path",
    "requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker",
}  # fmt: skip

_DIFFUSERS_FILES = (
    ("config.json", "diffusion_pytorch_model.safetensors"),
    ("config.json", "diffusion_pytorch_model.safetensors.index.json"),
)
_TRANSFORMERS_FILES = (("config.json", "model.safetensors"), ("config.json", "model.safetensors.index.json"))
_TOKENIZER_FILES = (("tokenizer_config.json", "tokenizer.json"), ("tokenizer_config.json", "vocab.json", "merges.txt"))
_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "unet": _DIFFUSERS_FILES,
    "vae": _DIFFUSERS_FILES,
    "scheduler": (("scheduler_config.json",),),
    "tokenizer": _TOKENIZER_FILES,
    "tokenizer_2": _TOKENIZER_FILES,
    "text_encoder": _TRANSFORMERS_FILES,
    "text_encoder_2": _TRANSFORMERS_FILES,
}
"""Component -> sets of files, one of which must be complete; the first file of each is the configuration."""


_COMPLETE = (
    "fetch the model again, completely; weights must be safetensors without a variant such as fp16 in their name"
)


@dataclass(frozen=True)
class ModelInfo:
    """What a directory that passed the check says it is.

    Attributes:
        pipeline: class of the pipeline.
        architecture: ``sd1`` (one CLIP text encoder of any width but 1024), ``sd2`` (width 1024) or ``sdxl``.
        prediction_type: what the denoiser predicts.
        components: component -> class, of those that are loaded.
        sample_size: height and width of a latent.
        erasers: cross-attention -> rank of the eraser stored after it; empty for a plain model.
    """

    pipeline: str
    architecture: Architecture
    prediction_type: PredictionType
    components: dict[str, str]
    sample_size: int
    erasers: dict[str, int]


def inspect(directory: Path) -> ModelInfo:
    """Check a model directory without loading anything from it. Of weights only the headers are read.

    Raises:
        ModelFault: it is not a Stable Diffusion 1.x, 2.x or XL directory of safetensors, or it holds something that
            is not opened here: code, pickles, archives, links that leave it, unknown classes, broken files.
    """
    directory = directory.absolute()
    try:
        if not directory.is_dir():
            raise refuse("there is no such directory", directory, "check the path, or name a hub model as owner/name")
        check_contents(directory)
        pipeline, components = _check_index(directory)
        configs = {name: _check_component(directory / name, kind) for name, kind in components.items()}
    except OSError as error:
        raise ModelFault(f"cannot be read: {error}", fix="check its permissions", where=str(directory)) from error
    return _describe(directory, pipeline, components, configs)


def _check_index(directory: Path) -> tuple[str, dict[str, str]]:
    """The pipeline's class, and component -> class of what will be loaded."""
    path = directory / "model_index.json"
    if not path.is_file():
        raise refuse("no model_index.json: this is not a diffusers pipeline directory", directory)
    index = read_json(path)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise refuse(unsupported(pipeline), path, "use a Stable Diffusion 1.x, 2.x or XL text-to-image model")
    classes = (_component_class(path, pipeline, name, entry) for name, entry in index.items() if name not in _SETTINGS)
    components = {name: kind for name, kind in classes if kind}
    missing = sorted(PIPELINES[pipeline].keys() - components.keys())
    if missing:
        raise refuse(f"the component {missing[0]!r} is missing", path)
    return pipeline, components


def _component_class(path: Path, pipeline: str, name: str, entry: Any) -> tuple[str, str]:
    """Name and class of a component; the class is empty when nothing will be loaded for it."""
    if entry == [None, None]:
        return name, ""
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise refuse(f"the entry {name!r} is not [library, class]", path)
    library, kind = entry
    if (library, kind) in LEFT_OUT.get(name, ()):
        return name, ""
    expected = "transformers" if name.startswith(("tokenizer", "text_encoder")) else "diffusers"
    if library != expected or kind not in PIPELINES[pipeline].get(name, ()):
        raise refuse(f"the component {name!r} of class {library + '.' + kind!r} is not supported", path)
    return name, kind


def _check_component(folder: Path, kind: str) -> dict[str, Any]:
    """The component's configuration; the files it is loaded from must be there."""
    choices = _FILES[folder.name]
    if not any(all((folder / file).is_file() for file in files) for files in choices):
        wanted = ", or ".join(" and ".join(files) for files in choices)
        raise refuse(f"the component {folder.name!r} is incomplete; needed: {wanted}", folder, _COMPLETE)
    path = folder / choices[0][0]
    config = read_json(path)
    declared = config.get("_class_name", config.get("tokenizer_class")) or kind
    if str(declared).removesuffix("Fast") != kind.removesuffix("Fast"):
        raise refuse(f"this file says {declared!r}, model_index.json says {kind!r}", path)
    return config


def _describe(
    directory: Path, pipeline: str, components: dict[str, str], configs: Mapping[str, Mapping[str, Any]]
) -> ModelInfo:
    """What the configurations agree on; a model whose parts do not fit together is refused."""
    unet, unet_folder = configs["unet"], directory / "unet"
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        advice = "use an epsilon or v-prediction model"
        raise refuse(f"the prediction type {prediction!r} is not supported", directory / "scheduler", advice)
    size, width = (
        _size(directory, configs, "unet", "sample_size"),
        _size(directory, configs, "unet", "cross_attention_dim"),
    )
    encoders = [
        _size(directory, configs, name, "hidden_size") for name in components if name.startswith("text_encoder")
    ]
    if sum(encoders) != width:
        raise refuse(
            f"cross_attention_dim is {width}, the text encoders give {'+'.join(map(str, encoders))}", unet_folder
        )
    embedding = unet.get("addition_embed_type")
    if embedding != ("text_time" if pipeline == "StableDiffusionXLPipeline" else None):
        raise refuse(f"addition_embed_type {embedding!r} does not belong to {pipeline}", unet_folder)
    shifted = [key for key in ("shift_factor", "latents_mean", "latents_std") if configs["vae"].get(key) is not None]
    if shifted:
        raise refuse(f"latents with a {shifted[0]} are not supported, only with a scaling_factor", directory / "vae")
    if unet.get("in_channels", 4) != configs["vae"].get("latent_channels", 4):
        raise refuse("the denoiser takes other channels than the autoencoder gives (an inpainting model?)", unet_folder)
    architecture: Architecture = "sdxl" if embedding else "sd2" if width == 1024 else "sd1"
    return ModelInfo(pipeline, architecture, prediction, components, size, _erasers(unet_folder))


def _erasers(folder: Path) -> dict[str, int]:
    """Cross-attention -> rank of its eraser, from the headers of the denoiser's files."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    widths: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, slot in read_header(path).items():
            if found := ERASER_KEY.fullmatch(name):
                shapes.setdefault(found["attention"], {})[found["leaf"]] = slot.shape
            elif name.endswith("attn2.to_out.0.weight"):
                widths[name.removesuffix(".to_out.0.weight")] = slot.shape[0]
    ranks = {}
    for name, leaves in shapes.items():
        width, rank = widths.get(name), next(iter(leaves.get("down.weight", ())), 0)
        expected = {"down.weight": (rank, width), "down.bias": (rank,), "up.weight": (width, rank), "up.bias": (width,)}
        if not rank or leaves != expected:
            raise refuse(f"the eraser of {name!r} is incomplete, or does not fit its attention", folder, _COMPLETE)
        ranks[name] = rank
    return ranks


def _size(directory: Path, configs: Mapping[str, Mapping[str, Any]], component: str, key: str) -> int:
    value = configs[component].get(key)
    if type(value) is not int or value <= 0:
        raise refuse(f"{key} is {value!r}, not a size", directory / component)
    return value
