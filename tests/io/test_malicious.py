"""Directories made to run code, to reach outside or to choke a parser: refused cleanly, and nothing of them runs.

Every payload would create a canary file. A directory is opened the way a user's is; it must raise a ModelFault, and the
canary must not be there. That the payloads do work when something runs them is tested too.
"""

from __future__ import annotations

import json
import os
import pickle
import runpy
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import ModelFault
from safeguard.io.opening import open_pipeline
from tests.io.test_preflight import cached_like_a_hub_download, edit


def code(canary: Path) -> str:
    """Python that creates the canary when it is imported, and defines every class a loader may ask for."""
    classes = "".join(
        f"class {name}:\n    pass\n" for name in ("MyPipeline", "StableDiffusionPipeline", "UNet2DConditionModel")
    )
    return f"open({str(canary)!r}, 'w').close()\n{classes}"


def bomb(canary: Path) -> bytes:
    """A pickle that creates the canary when it is loaded."""
    return b"cbuiltins\nexec\n(V" + f"open({str(canary)!r}, 'w').close()".encode() + b"\ntR."


Attack = Callable[[Path, Path], None]


def writes(name: str, make: Callable[[Path], str | bytes]) -> Attack:
    """A file is added (or replaced)."""

    def attack(model: Path, canary: Path) -> None:
        content = make(canary)
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return attack


def sets(name: str, **changes: Any) -> Attack:
    """Keys of a JSON file are changed; code that they might lead to lies in a module outside the directory."""
    return lambda model, canary: edit(model / name, **changes)


def both(*attacks: Attack) -> Attack:
    def attack(model: Path, canary: Path) -> None:
        for one in attacks:
            one(model, canary)

    return attack


def links(name: str, target: str) -> Attack:
    def attack(model: Path, canary: Path) -> None:
        (model.parent / "outside").mkdir(exist_ok=True)
        (model.parent / "outside" / "config.json").write_text("{}")
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(target.format(outside=model.parent / "outside"))

    return attack


def archive(model: Path, canary: Path) -> None:
    with zipfile.ZipFile(model / "weights.zip", "w") as file:
        file.writestr("code.py", code(canary))


def special(model: Path, canary: Path) -> None:
    os.mkfifo(model / "unet" / "pipe.json")


def huge_header(model: Path, canary: Path) -> None:
    with (model / "unet/diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200 * 10**6))
        file.truncate(8 + 200 * 10**6)


def shards(value: Any) -> Attack:
    index = json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": value}})
    return writes("unet/diffusion_pytorch_model.safetensors.index.json", lambda canary: index)


WEIGHTS = "unet/diffusion_pytorch_model"
ATTACKS: dict[str, Attack] = {
    "pipeline.py": both(writes("pipeline.py", code), sets("model_index.json", _class_name=["pipeline", "MyPipeline"])),
    "component in a python file": both(
        writes("unet/my_unet.py", code), sets("model_index.json", unet=["my_unet", "UNet2DConditionModel"])
    ),
    "None.py": writes("None.py", code),
    "upper-case suffix": writes("unet/CODE.PY", code),
    "compiled code": writes("unet/code.cpython-311.pyc", code),
    "shared library": writes("unet/kernel.so", code),
    "pickled weights instead": both(
        lambda model, canary: (model / f"{WEIGHTS}.safetensors").unlink(), writes(f"{WEIGHTS}.bin", bomb)
    ),
    "pickled weights beside": writes(f"{WEIGHTS}.bin", bomb),
    "pickle called safetensors": writes(f"{WEIGHTS}.safetensors", bomb),
    "checkpoint": writes("model.ckpt", bomb),
    "pt": writes("embeddings.pt", bomb),
    "pth": writes("embeddings.pth", bomb),
    "pickle": writes("scheduler/state.pickle", bomb),
    "pkl": writes("scheduler/state.pkl", bomb),
    "msgpack": writes("unet/diffusion_flax_model.msgpack", bomb),
    "h5": writes("text_encoder/tf_model.h5", bomb),
    "onnx": writes("unet/model.onnx", bomb),
    "numpy": writes("unet/weights.npz", bomb),
    "archive": archive,
    "terminal codes in a class": sets("model_index.json", _class_name="Flux\x1b[2J"),
    "terminal codes in a component": sets("model_index.json", unet=["diffusers", "\x1b[2J"]),
    "terminal codes in a setting": sets("unet/config.json", sample_size="\x1b[2J"),
    "terminal codes in a link": links("unet/config.json", "../\x1b[2J"),
    "class as a list": sets("model_index.json", _class_name=["StableDiffusionPipeline"]),
    "class as an object": sets("model_index.json", _class_name={"StableDiffusionPipeline": 1}),
    "custom pipeline class": sets("model_index.json", _class_name="MyPipeline"),
    "custom library": sets("model_index.json", unet=["os", "system"]),
    "library below diffusers": sets("model_index.json", unet=["diffusers.utils", "UNet2DConditionModel"]),
    "other class of diffusers": sets("model_index.json", unet=["diffusers", "DiffusionPipeline"]),
    "right class, wrong library": sets("model_index.json", unet=["transformers", "UNet2DConditionModel"]),
    "component that is no string": sets("model_index.json", unet=["diffusers", ["UNet2DConditionModel"]]),
    "component of three parts": sets("model_index.json", unet=["diffusers", "UNet2DConditionModel", "x"]),
    "component path": sets("model_index.json", **{"../outside": ["diffusers", "UNet2DConditionModel"]}),
    "unknown setting": sets("model_index.json", _module="os"),
    "setting that is a component": sets("model_index.json", custom_code=["os", "system"]),
    "custom_pipeline": sets("model_index.json", custom_pipeline="evil/repo"),
    "auto_map": sets("text_encoder/config.json", auto_map={"AutoModel": "evil/repo--code.MyModel"}),
    "auto_map of the tokenizer": sets("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
    "nested auto_map": sets("unet/config.json", extra=[{"deep": {"auto_map": {"AutoModel": "code.M"}}}]),
    "trust_remote_code": sets("scheduler/scheduler_config.json", trust_remote_code=True),
    "kernels from a hub": sets("text_encoder/config.json", attn_implementation="evil/kernels"),
    "quantiser": sets("unet/config.json", quantization_config={"quant_method": "evil"}),
    "adapter": writes("text_encoder/adapter_config.json", lambda canary: '{"base_model_name_or_path": "evil/repo"}'),
    "link out of the directory": links("unet/config.json", "../../outside/config.json"),
    "absolute link": links("unet/config.json", "{outside}/config.json"),
    "linked folder": links("folder", "{outside}"),
    "linked folder inside": links("folder", "unet"),
    "link to itself": links("loop.json", "loop.json"),
    "link to nothing": links("gone.json", "nothing.json"),
    "device": links("zero.json", "/dev/zero"),
    "pipe": special,
    "control characters in a name": writes("unet/a\x1b[2Jb.json", lambda canary: "{}"),
    "backslash in a name": writes("unet/..\\..\\x.json", lambda canary: "{}"),
    "shard outside": shards("../../outside/x.safetensors"),
    "shard by absolute path": shards("/etc/passwd"),
    "shard with a backslash": shards("..\\x.safetensors"),
    "shard that is a pickle": shards("weights.bin"),
    "shard that is no string": shards(["x.safetensors"]),
    "shard that is missing": shards("missing.safetensors"),
    "shard index without map": writes(f"{WEIGHTS}.safetensors.index.json", lambda canary: "[]"),
    "duplicate keys": writes(
        "model_index.json", lambda canary: '{"_class_name": "StableDiffusionPipeline", "_class_name": "MyPipeline"}'
    ),
    "deep json": writes("unet/config.json", lambda canary: '{"a":' * 50_000),
    "huge json": writes("unet/config.json", lambda canary: '{"a": "' + "x" * 33 * 2**20 + '"}'),
    "json that is a list": writes("unet/config.json", lambda canary: "[]"),
    "not json": writes("unet/config.json", lambda canary: "import os"),
    "not text": writes("unet/config.json", lambda canary: b"\xff\xfe\x00"),
    "huge header": huge_header,
    "truncated weights": lambda model, canary: os.truncate(model / f"{WEIGHTS}.safetensors", 100_000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_refused_and_nothing_ran(model: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    ATTACKS[name](model, canary)
    with pytest.raises(ModelFault) as caught:
        open_pipeline(model)
    assert caught.value.exit_code == 2
    assert str(model) in caught.value.where
    assert caught.value.fix
    assert "\x1b" not in str(caught.value)
    assert not canary.exists()


def test_payloads_are_live(tmp_path: Path) -> None:
    """Without this the suite would pass with duds."""
    (tmp_path / "code.py").write_text(code(tmp_path / "one"))
    runpy.run_path(str(tmp_path / "code.py"))
    pickle.loads(bomb(tmp_path / "two"))
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()


@pytest.mark.parametrize("target", ["{cache}/models--other--name/blobs/x", "{cache}/secret", "/etc/hostname"])
def test_links_of_a_hub_cache_lead_to_blobs_of_the_same_model_only(model: Path, tmp_path: Path, target: str) -> None:
    cache = tmp_path / "cache"
    snapshot = cached_like_a_hub_download(model, cache)
    for path in ("models--other--name/blobs/x", "secret"):
        (cache / path).parent.mkdir(parents=True, exist_ok=True)
        (cache / path).write_text("{}")
    (snapshot / "extra.json").symlink_to(target.format(cache=cache))
    with pytest.raises(ModelFault, match="leaves the directory"):
        open_pipeline(snapshot)
