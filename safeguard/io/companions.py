"""What lies beside the weights that are hardened: terms, a model card, a safety checker; carried over, or said.

A licence goes with what it is the licence of, and a safety checker that its publisher ships is not taken away without a
word. Carried over, byte for byte, are the text files at the top of the directory and the components that are never
loaded here (:data:`safeguard.io.preflight.LEFT_OUT`). Everything else is named in the hardening record.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeguard.errors import ModelFault
from safeguard.io.formats import read_json
from safeguard.io.manifest import WEIGHTS_SUFFIX
from safeguard.io.opening import OpenedModel
from safeguard.io.preflight import COMPONENTS, INDEX_FILE, LEFT_OUT
from safeguard.io.weight_files import loaded_files
from safeguard.results.hardening import POLICY_FILE, RECORD_FILE

_TEXTS = {"", ".md", ".txt", ".rst", ".pdf"}
"""Types of what people read: licences, model cards, notices."""
_OURS = {INDEX_FILE, RECORD_FILE, POLICY_FILE}
"""Files that every hardening writes itself."""
_NEEDED = {"feature_extractor": "preprocessor_config.json"}
"""Without this file a component of that name is none; of the others, without weights."""


@dataclass(frozen=True)
class Companions:
    """What is carried over from a base model, and what is not.

    Attributes:
        directory: the base model's.
        files: relative path of what is carried over -> SHA-256.
        index: the entries of ``model_index.json`` that go with it.
        left: relative paths of what is not.
    """

    directory: Path
    files: dict[str, str]
    index: dict[str, Any]
    left: list[str]

    @classmethod
    def of(cls, base: OpenedModel) -> Companions:
        """Those of a base model that was just opened."""
        index = read_json(base.directory / INDEX_FILE)
        named = {name: index[name] for name in LEFT_OUT if index.get(name) not in (None, [None, None])}
        whole = {name: entry for name, entry in named.items() if _complete(name, base.files)}
        if "safety_checker" in whole:
            whole["requires_safety_checker"] = index.get("requires_safety_checker", True)
        carried, left = {}, [name for name in named if name not in whole]
        for path, digest in base.files.items():
            folder, _, file = path.rpartition("/")
            if path.partition("/")[0] in whole or (
                not folder and file[0] != "." and Path(file).suffix.lower() in _TEXTS
            ):
                carried[path] = digest
            elif path not in _OURS and _is_lost(base.directory, path):
                left.append(path)
        return cls(base.directory, carried, whole, left)

    @property
    def notes(self) -> list[str]:
        """For the hardening record."""
        names = sorted({path.partition("/")[0] for path in self.files})
        found = [f"carried over from the base model, byte for byte: {', '.join(names)}"] if names else []
        return found + ([f"left out of what the base model's directory holds: {_some(self.left)}"] if self.left else [])

    def write(self, directory: Path) -> None:
        """Copy the files into a model directory that is otherwise complete, and name the components in its index.

        Raises:
            ModelFault: the base model is not any more what was opened.
            OSError: writing failed.
        """
        for path, digest in self.files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.directory / path, directory / path)
            with (directory / path).open("rb") as copy:
                if hashlib.file_digest(copy, "sha256").hexdigest() != digest:
                    raise ModelFault(
                        f"the base model changed while it was hardened ({path})",
                        fix="let nothing write to it, then harden again",
                        where=str(self.directory),
                    )
        if self.index:
            index = read_json(directory / INDEX_FILE) | self.index
            (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _complete(name: str, files: dict[str, str]) -> bool:
    own = [path for path in files if path.startswith(f"{name}/")]
    needed = _NEEDED.get(name)
    return f"{name}/{needed}" in own if needed else any(path.endswith(WEIGHTS_SUFFIX) for path in own)


def _is_lost(directory: Path, path: str) -> bool:
    """Whether nothing of the file is in what will be written: components are written anew, their weights included."""
    folder = path.partition("/")[0]
    if folder not in COMPONENTS or not path.endswith(WEIGHTS_SUFFIX):
        return folder not in COMPONENTS
    return directory / path not in loaded_files(directory / folder)


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(paths[:8]) + more
