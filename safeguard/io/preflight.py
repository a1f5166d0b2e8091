"""A static check of a model directory, before diffusers or torch see a byte of it.

Loading a diffusers directory runs what the directory names: a library, a class, code beside the weights, a pickle.
So nothing is loaded that is not on the short lists below, and the whole directory is refused when it holds anything
that could be run or unpickled, even where diffusers would not touch it. Nothing here imports torch or diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safeguard.diffusion.architectures import ERASER_KEY, Architecture, PredictionType, unsupported
from safeguard.errors import ModelFault
from safeguard.io.contents import check_contents, refuse
from safeguard.io.formats import read_header, read_json
from safeguard.io.weight_files import check_opened, loaded_files

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
INDEX_FILE = "model_index.json"
COMPONENTS = frozenset(_SDXL)
"""Names of the components that may be loaded."""

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

_AGAIN = "fetch the model again from its publisher"
_ONE_WIDTH = "use a model whose cross-attentions all have one width"


@dataclass(frozen=True)
class ModelInfo:
    """What a directory that passed the check says it is.

    Attributes:
        pipeline: class of the pipeline.
        architecture: ``sd1`` (one CLIP text encoder of any width but 1024), ``sd2`` (width 1024) or ``sdxl``.
        prediction_type: what the denoiser predicts.
        components: component -> class, of those that are loaded.
        sample_size: height and width of a latent.
        channels: of a latent.
        erasers: cross-attention -> rank of the eraser stored after it; empty for a plain model.
        unopened: of a certified model, relative paths of the weights that are not opened and may stay.
    """

    pipeline: str
    architecture: Architecture
    prediction_type: PredictionType
    components: dict[str, str]
    sample_size: int
    channels: int
    erasers: dict[str, int]
    unopened: Sequence[str] = ()


def inspect(directory: Path, *, certified: bool = False) -> ModelInfo:
    """Check a model directory without loading anything from it. Of weights only the headers are read.

    Args:
        certified: whether it is the model of a certificate: then it may hold no weights but those that are opened
            (:mod:`safeguard.io.weight_files`).

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
        unopened = check_opened(directory, components, _named(directory)) if certified else []
    except OSError as error:
        raise ModelFault(f"cannot be read: {error}", fix="check its permissions", where=str(directory)) from error
    return replace(_describe(directory, pipeline, components, configs), unopened=unopened)


def _check_index(directory: Path) -> tuple[str, dict[str, str]]:
    """The pipeline's class, and component -> class of what will be loaded."""
    path = directory / INDEX_FILE
    if not path.is_file():
        raise refuse(
            "no model_index.json: this is not a diffusers pipeline directory",
            directory,
            "give the directory that holds model_index.json; a single-file checkpoint must be converted first, with "
            "diffusers' from_single_file and save_pretrained",
        )
    index = read_json(path)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise refuse(unsupported(pipeline), path, "use a Stable Diffusion 1.x, 2.x or XL text-to-image model")
    classes = (_component_class(path, pipeline, name, entry) for name, entry in index.items() if name not in _SETTINGS)
    components = {name: kind for name, kind in classes if kind}
    missing = sorted(PIPELINES[pipeline].keys() - components.keys())
    if missing:
        raise refuse(f"the component {missing[0]!r} is missing", path, _COMPLETE)
    return pipeline, components


def _named(directory: Path) -> list[str]:
    """Everything that the index names, loaded or not."""
    return [name for name, entry in read_json(directory / INDEX_FILE).items() if entry not in (None, [None, None])]


def _component_class(path: Path, pipeline: str, name: str, entry: Any) -> tuple[str, str]:
    """Name and class of a component; the class is empty when nothing will be loaded for it."""
    if entry == [None, None]:
        return name, ""
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise refuse(f"the entry {name!r} is not [library, class]", path, _AGAIN)
    library, kind = entry
    if (library, kind) in LEFT_OUT.get(name, ()):
        return name, ""
    expected = "transformers" if name.startswith(("tokenizer", "text_encoder")) else "diffusers"
    known = PIPELINES[pipeline].get(name, ())
    if library != expected or kind not in known:
        what = f"the component {name!r} of class {library + '.' + kind!r} is not supported"
        raise refuse(what, path, _advice(name, known))
    return name, kind


def _advice(name: str, known: Sequence[str]) -> str:
    if name == "scheduler":
        return (
            f"use a model with one of the schedulers {', '.join(known)}; distilled (LCM) and EDM models have another "
            "kind of noise schedule and cannot be hardened here"
        )
    if known:
        return f"use a model whose {name} is of class {' or '.join(known)}"
    return "use a plain Stable Diffusion model, without that component"


def _check_component(folder: Path, kind: str) -> dict[str, Any]:
    """The component's configuration; the files it is loaded from must be there."""
    choices = _FILES[folder.name]
    if not any(all((folder / file).is_file() for file in files) for files in choices):
        wanted = ", or ".join(" and ".join(files) for files in choices)
        raise refuse(f"the component {folder.name!r} is incomplete; needed: {wanted}", folder, _COMPLETE)
    if len(sets := [files[1] for files in choices if len(files) == 2 and (folder / files[1]).is_file()]) > 1:
        raise refuse(f"two sets of weights, {' and '.join(sets)}", folder, "delete the one that is not meant")
    path = folder / choices[0][0]
    config = read_json(path)
    declared = config.get("_class_name", config.get("tokenizer_class")) or kind
    if str(declared).removesuffix("Fast") != kind.removesuffix("Fast"):
        raise refuse(f"this file says {declared!r}, model_index.json says {kind!r}", path, _AGAIN)
    return config


def _describe(
    directory: Path, pipeline: str, components: dict[str, str], configs: Mapping[str, Mapping[str, Any]]
) -> ModelInfo:
    """What the configurations agree on; a model whose parts do not fit together is refused."""
    unet, unet_folder = configs["unet"], directory / "unet"
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        advice = "use an epsilon or v-prediction model"
        path = directory / "scheduler" / "scheduler_config.json"
        raise refuse(f"prediction_type: {prediction!r} is not supported", path, advice)
    size, width = (
        _size(directory, configs, "unet", "sample_size"),
        _size(directory, configs, "unet", "cross_attention_dim"),
    )
    encoders = [
        _size(directory, configs, name, "hidden_size") for name in components if name.startswith("text_encoder")
    ]
    if sum(encoders) != width:
        raise refuse(
            f"cross_attention_dim is {width}, the text encoders give {'+'.join(map(str, encoders))}",
            unet_folder / "config.json",
            "use the text encoders that the denoiser was trained with",
        )
    embedding = unet.get("addition_embed_type")
    if embedding != ("text_time" if pipeline == "StableDiffusionXLPipeline" else None):
        raise refuse(
            f"addition_embed_type {embedding!r} does not belong to {pipeline}",
            unet_folder / "config.json",
            "use the denoiser of a text-to-image model of that pipeline",
        )
    shifted = [key for key in ("shift_factor", "latents_mean", "latents_std") if configs["vae"].get(key) is not None]
    if shifted:
        raise refuse(
            f"latents with a {shifted[0]} are not supported, only with a scaling_factor",
            directory / "vae" / "config.json",
            "use a model with an autoencoder of Stable Diffusion 1.x, 2.x or XL",
        )
    channels = configs["vae"].get("latent_channels", 4)
    for key, reason in (("in_channels", "an inpainting model?"), ("out_channels", "one that learns variances?")):
        if unet.get(key, 4) != channels:
            raise refuse(
                f"{key} is {unet.get(key, 4)}, a latent has {channels} channels ({reason})",
                unet_folder / "config.json",
                "use the text-to-image version of the model, whose denoiser predicts noise or v and nothing else",
            )
    _check_schedule(configs["scheduler"], directory / "scheduler" / "scheduler_config.json")
    architecture: Architecture = "sdxl" if embedding else "sd2" if width == 1024 else "sd1"
    return ModelInfo(pipeline, architecture, prediction, components, size, channels, _erasers(unet_folder))


def _check_schedule(config: Mapping[str, Any], path: Path) -> None:
    """Settings that no sampler here can follow, each by its name."""
    if (variance := config.get("variance_type")) in ("learned", "learned_range"):
        raise refuse(
            f"variance_type is {variance!r}, and the denoiser has no channels for a variance",
            path,
            'set variance_type to "fixed_small"',
        )
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or steps <= 0:
        raise refuse(f"num_train_timesteps is {steps!r}", path, "set it to what the model was trained with, often 1000")
    grids = [key for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config.get(key)]
    if len(grids) > 1:
        raise refuse(f"{' and '.join(grids)} exclude each other", path, "set all but one of them to false")


def _erasers(folder: Path) -> dict[str, int]:
    """Cross-attention -> rank of its eraser, from the headers of the denoiser's files."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    widths: dict[str, int] = {}
    for path in loaded_files(folder):
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
        path = directory / component / "config.json"
        if isinstance(value, list):
            advice = "use a model of square images, with one number here" if key == "sample_size" else _ONE_WIDTH
            raise refuse(f"{key} is {value!r}, not a size: one number is supported", path, advice)
        raise refuse(f"{key} is {value!r}, not a size", path, _AGAIN)
    return value
