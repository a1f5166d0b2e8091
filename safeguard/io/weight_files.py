"""Which files a model is opened from, and which weights lie beside them that nobody opens.

A certificate speaks of what was opened. Weights that lie in the same directory and were not are one argument away from
a user: ``variant="fp16"``, ``load_lora_weights(directory)``, ``subfolder="unet_ema"``. So a model under certification
may hold none. They are told by name and, whatever their name, by how they begin. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from safeguard.errors import ModelFault
from safeguard.io.formats import MAX_HEADER, read_header, read_json

SUFFIX = ".safetensors"
WITH_WEIGHTS = ("unet", "vae", "text_encoder")
"""How the names of components that have weights begin."""
SAFETY_CHECKER = "safety_checker"
_OF_A_SAFETY_CHECKER = {
    "vision_model", "visual_projection",
    "concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights",
}  # fmt: skip
"""First parts of the names of its tensors: no loader takes them for another component's."""
_MAGIC = {
    b"PK\x03\x04": "an archive, as PyTorch writes its checkpoints",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a compressed file",
    b"BZh": "a compressed file",
    b"\xfd7zXZ": "a compressed file",
    b"\x28\xb5\x2f\xfd": "a compressed file",
    b"7z\xbc\xaf\x27\x1c": "an archive",
    b"Rar!": "an archive",
    **{bytes([0x80, protocol]): "a pickle, as PyTorch writes its checkpoints" for protocol in range(2, 6)},
}
"""How files begin that hold weights, or may; what other formats than safetensors are called."""
_TAR = 257, b"ustar"
_VERSION_CONTROL = ".git"


def stem(component: str) -> str:
    """The name of a component's weight file, without suffix, as its library writes and reads it."""
    return "diffusion_pytorch_model" if component in ("unet", "vae") else "model"


def loaded_files(folder: Path) -> list[Path]:
    """The one file of a component, else the shards of its index; the pre-flight saw to it that one of both is there."""
    name = stem(folder.name)
    if (whole := folder / f"{name}{SUFFIX}").is_file():
        return [whole]
    if (index := folder / f"{name}{SUFFIX}.index.json").is_file():
        return [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
    return []


def check_opened(directory: Path, components: Collection[str], named: Collection[str]) -> list[str]:
    """Refuse weights that are not opened.

    Args:
        directory: of a model that passed the rest of the pre-flight.
        components: those that are loaded.
        named: all that ``model_index.json`` names.

    Returns:
        Relative paths of weights that are not opened and may stay: a safety checker's.

    Raises:
        ModelFault: there are others; the first is named, with what would open it.
    """
    components = [name for name in components if name.startswith(WITH_WEIGHTS)]
    opened = [path for name in components for path in loaded_files(directory / name)]
    _check_once(directory, components)
    others = (path for path in sorted(directory.rglob("*")) if path.is_file() and path not in opened)
    paths = [path for path in others if path.relative_to(directory).parts[0] != _VERSION_CONTROL]
    spared = {path for path in paths if SAFETY_CHECKER in named and _of_a_safety_checker(directory, path)}
    found = [(path, why) for path in paths if path not in spared and (why := _weights(directory, path, components))]
    if found:
        path, why = found[0]
        more = f" ({len(found) - 1} more files like this follow)" if len(found) > 1 else ""
        raise ModelFault(
            f"weights that are not opened here, so nothing is known of what they draw: {why}{more}",
            fix="delete the file; a certificate speaks of one set of weights, and no other may lie beside it",
            where=str(path),
        )
    return sorted(path.relative_to(directory).as_posix() for path in spared)


def _check_once(directory: Path, components: Collection[str]) -> None:
    """Of a tensor that two shards hold, who opens the model decides which is taken."""
    for name in components:
        counts = Counter(tensor for path in loaded_files(directory / name) for tensor in read_header(path))
        if twice := sorted(tensor for tensor, count in counts.items() if count > 1):
            raise ModelFault(
                f"two shards hold the tensor {twice[0]!r}",
                fix="save the model again, as one file or in shards that share nothing",
                where=str(directory / name),
            )


def _of_a_safety_checker(directory: Path, path: Path) -> bool:
    inside = path.relative_to(directory).parts[0] == SAFETY_CHECKER and path.suffix.lower() == SUFFIX
    return inside and {name.partition(".")[0] for name in read_header(path)} <= _OF_A_SAFETY_CHECKER


def _weights(directory: Path, path: Path, components: Collection[str]) -> str:
    """Why a file counts as weights, and what opens it; empty: it holds none."""
    if path.suffix.lower() != SUFFIX:
        kind = _kind(path)
        return f"{kind} under another name, which a loader that is given the name opens" if kind else ""
    folder = path.parent.relative_to(directory).as_posix()
    name = path.name.removesuffix(path.suffix)
    if re.search(r"lora|adapter|lycoris|loha|dora", name, re.IGNORECASE):
        return "load_lora_weights puts this adapter on the model"
    if re.search(r"learned_embeds|embedding|textual_inversion", name, re.IGNORECASE):
        return "load_textual_inversion teaches the text encoder words from it"
    if folder == ".":
        return "from_single_file opens it as a model of its own"
    if folder not in components:
        return f"no weights are opened from {folder!r}; a pipeline can be given them in the place of its own"
    return _in_a_component(folder, name)


def _in_a_component(component: str, name: str) -> str:
    if found := re.fullmatch(rf"{stem(component)}[.](.+?)(-\d+-of-\d+)?", name):
        return f"diffusers opens it with variant={found[1]!r}"
    if re.fullmatch(r".*-\d+-of-\d+", name):
        return f"a shard of {component!r} that is not named by the index which is opened"
    return f"a second set of weights of {component!r}"


def _kind(path: Path) -> str:
    """What a file is by its first bytes, if it may hold weights."""
    with path.open("rb") as file:
        start = file.read(512)
        for magic, kind in _MAGIC.items():
            if start.startswith(magic):
                return kind
        if start[_TAR[0] :].startswith(_TAR[1]):
            return "an archive"
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or not 2 <= length <= MAX_HEADER:
            return ""
        file.seek(8)
        return "safetensors" if b'"data_offsets"' in file.read(length) else ""
