"""The weights of a directory, read once: hashed, checked and, where a component asks for them, kept as tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from safeguard.io.formats import read_tensors
from safeguard.io.weight_files import loaded_files

TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""dtype as safetensors spells it -> as PyTorch does."""


class WeightReader:
    """Reads the weight files of one directory, each of them once.

    Attributes:
        digests: path of every file that was read, relative to the directory -> SHA-256 in hexadecimal.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.digests: dict[str, str] = {}

    def component(self, name: str) -> dict[str, Tensor]:
        """All tensors of a component, by name, in the type they are stored in.

        Raises:
            ModelFault: a file of it is broken, or a number is infinite or NaN.
        """
        folder = self.directory / name
        return {key: value for path in loaded_files(folder) for key, value in self._read(path).items()}

    def rest(self) -> None:
        """Read what no component asked for, for its digest and its numbers alone.

        Raises:
            ModelFault: a file is broken, or a number is infinite or NaN.
        """
        for path in sorted(self.directory.rglob("*.safetensors")):
            if self._name(path) not in self.digests:
                self._read(path, keep=False)

    def _read(self, path: Path, *, keep: bool = True) -> dict[str, Tensor]:
        digest = hashlib.sha256()
        found = {}
        for name, slot, data in read_tensors(path, digest):
            if keep:
                dtype = TORCH_TYPES[slot.dtype]
                # a copy: memory that PyTorch allocates is aligned as its kernels, and equal results, want it
                flat = torch.frombuffer(data, dtype=dtype).clone() if data else torch.empty(0, dtype=dtype)
                found[name] = flat.view(slot.shape)
        self.digests[self._name(path)] = digest.hexdigest()
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()
