"""Weights that nobody opens: each kind, where a certified model has it and where a base model does."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeguard.errors import ModelFault
from safeguard.io.opening import open_directory
from safeguard.io.preflight import inspect
from safeguard.io.weight_files import loaded_files
from tests.io.test_preflight import edit

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def copied(source: str, target: str) -> Callable[[Path], str]:
    """Weights of the model once more, under another name."""

    def add(model: Path) -> str:
        (model / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model / source, model / target)
        return target

    return add


def written(target: str, content: bytes) -> Callable[[Path], str]:
    def add(model: Path) -> str:
        (model / target).write_bytes(content)
        return target

    return add


def pickled(target: str, *, zipped: bool) -> Callable[[Path], str]:
    """What ``torch.save`` writes, under a name that says nothing."""

    def add(model: Path) -> str:
        buffer = io.BytesIO()
        torch.save({"conv_in.weight": torch.ones(2)}, buffer, _use_new_zipfile_serialization=zipped)
        return written(target, buffer.getvalue())(model)

    return add


def tarred(target: str) -> Callable[[Path], str]:
    def add(model: Path) -> str:
        with tarfile.open(model / target, "w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(model / UNET, "weights")
        return target

    return add


def sharded(model: Path) -> str:
    """The denoiser in one shard, and a second one that its index does not name."""
    whole = model / UNET
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        shutil.copy(whole, whole.with_name(name))
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(whole), names[0])}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    return f"unet/{names[1]}"


def unnamed_safety_checker(model: Path) -> str:
    return copied(UNET, "safety_checker/model.safetensors")(model)


def false_safety_checker(model: Path) -> str:
    edit(model / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    return copied(UNET, "safety_checker/model.safetensors")(model)


UNOPENED: dict[str, tuple[Callable[[Path], str], str]] = {
    "half precision": (copied(UNET, "unet/diffusion_pytorch_model.fp16.safetensors"), "variant='fp16'"),
    "not averaged": (copied(UNET, "unet/diffusion_pytorch_model.non_ema.safetensors"), "variant='non_ema'"),
    "a shard of a variant": (
        copied(UNET, "unet/diffusion_pytorch_model.bf16-00001-of-00001.safetensors"),
        "variant='bf16'",
    ),
    "a variant of the text encoder": (copied(TEXT, "text_encoder/model.fp16.safetensors"), "variant='fp16'"),
    "a variant of the autoencoder": (
        copied("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
        "variant='fp16'",
    ),
    "two names": (copied(UNET, "unet/model.safetensors"), "a second set of weights of 'unet'"),
    "two names of the text encoder": (
        copied(TEXT, "text_encoder/diffusion_pytorch_model.safetensors"),
        "a second set of weights of 'text_encoder'",
    ),
    "old weights": (copied(UNET, "unet/old.safetensors"), "a second set of weights"),
    "capitals": (copied(UNET, "unet/OLD.SAFETENSORS"), "a second set of weights"),
    "a shard nobody names": (sharded, "a shard of 'unet' that is not named"),
    "LoRA": (copied(UNET, "pytorch_lora_weights.safetensors"), "load_lora_weights"),
    "LoRA in a folder": (copied(UNET, "lora/pytorch_lora_weights.safetensors"), "load_lora_weights"),
    "adapter": (copied(UNET, "unet/adapter_model.safetensors"), "load_lora_weights"),
    "embeddings": (copied(TEXT, "learned_embeds.safetensors"), "load_textual_inversion"),
    "single file": (copied(UNET, "v1-5-pruned.safetensors"), "from_single_file"),
    "other denoiser": (copied(UNET, "unet_ema/diffusion_pytorch_model.safetensors"), "opened from 'unet_ema'"),
    "transformer": (copied(UNET, "transformer/diffusion_pytorch_model.safetensors"), "opened from 'transformer'"),
    "in the tokenizer": (copied(UNET, "tokenizer/model.safetensors"), "opened from 'tokenizer'"),
    "deeper": (copied(UNET, "unet/old/diffusion_pytorch_model.safetensors"), "opened from 'unet/old'"),
    "out of sight": (copied(UNET, ".cache/unet/diffusion_pytorch_model.safetensors"), "opened from '.cache/unet'"),
    "another suffix": (copied(UNET, "unet/weights.dat"), "safetensors under another name"),
    "no suffix": (copied(UNET, "unet/weights"), "safetensors under another name"),
    "a text": (copied(UNET, "NOTES.txt"), "safetensors under another name"),
    "backup": (copied(UNET, "unet/diffusion_pytorch_model.safetensors.bak"), "safetensors under another name"),
    "a pickle in a zip": (pickled("unet/weights.dat", zipped=True), "an archive"),
    "an old pickle": (pickled("unet/weights.dat", zipped=False), "a pickle"),
    "tar": (tarred("weights.data"), "an archive"),
    "GGUF": (written("unet/q4", b"GGUF\x03\x00\x00\x00"), "a GGUF file"),
    "a safety checker that is not named": (unnamed_safety_checker, "opened from 'safety_checker'"),
    "a safety checker that is a denoiser": (false_safety_checker, "opened from 'safety_checker'"),
}


@pytest.mark.parametrize("case", UNOPENED)
def test_a_certified_model_may_not_have_it_and_a_base_model_may(model: Path, case: str) -> None:
    add, reason = UNOPENED[case]
    name = add(model)
    assert inspect(model)
    with pytest.raises(ModelFault, match="not opened here") as caught:
        inspect(model, certified=True)
    assert reason in str(caught.value) and caught.value.where == str(model / name)
    assert caught.value.exit_code == 2
    (model / name).unlink()
    assert inspect(model, certified=True), "the advice works"


def test_what_belongs_to_a_model_is_accepted(model: Path) -> None:
    (model / "README.md").write_text("# A model\n")
    (model / "samples").mkdir()
    (model / "samples/grid.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (model / "short").write_bytes(b"\x01")
    (model / ".git").mkdir()
    shutil.copy(model / UNET, model / ".git/0123")
    assert inspect(model, certified=True).unopened == []


def test_a_safety_checker_may_stay_and_is_listed(model: Path) -> None:
    (model / "safety_checker").mkdir()
    tensors = {"concept_embeds": torch.ones(2), "vision_model.vision_model.post_layernorm.bias": torch.ones(2)}
    save_file(tensors, model / "safety_checker/model.safetensors")
    edit(model / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert inspect(model, certified=True).unopened == ["safety_checker/model.safetensors"]


def test_shards_that_share_a_tensor_are_refused(model: Path) -> None:
    unnamed = model / sharded(model)
    path = unnamed.with_name("diffusion_pytorch_model.safetensors.index.json")
    index = json.loads(path.read_text())
    index["weight_map"] |= {"conv_in.weight": unnamed.name}
    path.write_text(json.dumps(index))
    with pytest.raises(ModelFault, match=r"two shards hold the tensor 'conv_in\.bias'"):
        inspect(model, certified=True)


def test_what_is_opened_is_what_its_library_opens(model: Path) -> None:
    """A text encoder's file is ``model.safetensors``, whatever else lies there."""
    other = {name: value + 1 for name, value in load_file(model / TEXT).items()}
    save_file(other, model / "text_encoder/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert loaded_files(model / "text_encoder") == [model / TEXT]
    stored = load_file(model / TEXT)
    value = open_directory(model).pipeline.text_encoder.get_input_embeddings().weight
    assert any(torch.equal(value, each) for each in stored.values())
