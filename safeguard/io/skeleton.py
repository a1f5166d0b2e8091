"""A model as opening it would give it, without its weights: what is stored under which name, and what is configured.

Two directories can hold the same model and share no line: libraries fill in defaults, correct old settings and rename
tensors when they open one, and write what they made of it. So models are compared as their libraries see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from safeguard.diffusion.architectures import ERASER_KEY
from safeguard.errors import ModelFault
from safeguard.io.formats import read_header
from safeguard.io.hub import no_network
from safeguard.io.opening import assemble, explained, quiet, small_parts
from safeguard.io.preflight import ModelInfo, inspect
from safeguard.io.weight_files import WITH_WEIGHTS, loaded_files

_COUNTERS = ("position_ids",)
"""Buffers that older files hold and newer ones leave out; they count positions and carry nothing."""
_OLD_PREFIX = "text_model."
"""Names of a text encoder's tensors begin with it in older files."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, and its name there."""

    file: Path
    name: str


@dataclass(frozen=True)
class Skeleton:
    """One model without its weights.

    Attributes:
        directory: where it is from.
        pipeline: with modules on the meta device.
        tensors: component -> name in its module -> place.
        unused: tensors that no module takes, by names such as ``unet.ema.conv_in.weight``.
    """

    directory: Path
    pipeline: Any
    tensors: Mapping[str, Mapping[str, Place]]
    unused: list[str]

    @classmethod
    def of(cls, directory: Path) -> Skeleton:
        """That of a directory, of whose weights the headers are read.

        Raises:
            ModelFault: the directory is refused, or cannot be opened.
        """
        info = inspect(directory)
        quiet()
        with no_network(), explained(directory):
            modules = small_parts(directory, info)
            modules |= {name: _empty(directory / name, kind) for name, kind in _weighted(info)}
            pipeline = assemble(directory, info, modules)
        tensors, unused = {}, list[str]()
        for name, _ in _weighted(info):
            tensors[name], left = _matched(modules[name], loaded_files(directory / name))
            unused += [f"{name}.{each}" for each in left]
        return cls(directory, pipeline, tensors, unused)

    def check_used(self) -> None:
        """Refuse weights that no module takes.

        Raises:
            ModelFault: there are some.
        """
        if self.unused:
            more = f" and {len(self.unused) - 1} more" if len(self.unused) > 1 else ""
            raise ModelFault(
                f"tensors that are not opened here, so nothing is known of what they draw: {self.unused[0]}{more}",
                fix="open the model with its library and save it again, which leaves them out",
                where=str(self.directory / self.unused[0].partition(".")[0]),
            )


def _weighted(info: ModelInfo) -> Iterator[tuple[str, str]]:
    """Components that have weights, with their classes."""
    return ((name, kind) for name, kind in info.components.items() if name.startswith(WITH_WEIGHTS))


def _empty(folder: Path, kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        if folder.name.startswith("text_encoder"):
            model_class = getattr(transformers, kind)
            module: torch.nn.Module = model_class(
                model_class.config_class.from_pretrained(folder, local_files_only=True)
            )
        else:
            model_class = getattr(diffusers, kind)
            module = model_class.from_config(model_class.load_config(folder, local_files_only=True))
    return module.requires_grad_(False).eval()


def _matched(module: Any, files: list[Path]) -> tuple[dict[str, Place], list[str]]:
    """Name in the module -> place, and the names of what is left over; erasers are none of the module's, and taken."""
    known, erasable = module.state_dict().keys(), isinstance(module, diffusers.UNet2DConditionModel)
    stored = {name: Place(path, name) for path in files for name in read_header(path) if not name.endswith(_COUNTERS)}
    names: dict[str, Any] = {name: name for name in stored}
    if isinstance(module, diffusers.ModelMixin):
        names = dict(module._fix_state_dict_keys_on_load(names))  # autoencoders of before 2023
    found, left = {}, list[str]()
    for name, original in names.items():
        bare = name.removeprefix(_OLD_PREFIX)
        own = name in known or (erasable and ERASER_KEY.fullmatch(name))
        taken = name if own else bare if bare in known else None
        if taken is None or taken in found:
            left.append(original)
        else:
            found[taken] = stored[original]
    return found, left + sorted(stored.keys() - set(names.values()))
