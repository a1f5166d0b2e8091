"""What distinguishes a model from its base, component by component: weights as numbers, everything else as it is read.

Weights of the base are rounded to the type in which the model stores its own, so that a model in half precision differs
in what was changed and in nothing else. Configurations, tokenizers and the noise schedule are compared as their
libraries read them (:mod:`safeguard.io.skeleton`), and tokenizer files that are not read here, but elsewhere, must say
the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from safeguard.io.skeleton import Place, Skeleton
from safeguard.io.vocabulary import described, strange_files
from safeguard.wording import percent

_UNTOLD = (
    "transformers_version", "architectures", "torch_dtype", "dtype", "model_type", "return_dict", "output_attentions",
    "output_hidden_states", "problem_type", "id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder",
)  # fmt: skip
"""Settings of a configuration that change nothing a model draws; those with a leading underscore do not either."""


@dataclass(frozen=True)
class Difference:
    """One component of a model against its base's.

    Attributes:
        name: ``unet``, ``tokenizer``, ``scheduler``; ``pipeline`` for what ``model_index.json`` says.
        changed: tensors whose numbers differ, or that one of both lacks.
        tensors: how many there are in both together.
        settings: what else differs, by name.
    """

    name: str
    changed: int
    tensors: int
    settings: list[str]

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return self.changed > 0 or bool(self.settings)

    @property
    def what(self) -> str:
        """In a clause."""
        if not self.differs:
            return "as in the base model"
        weights = f"{self.changed} of {self.tensors} tensors differ ({percent(self.changed / max(1, self.tensors))})"
        return "; ".join(
            [weights] * (self.changed > 0) + [f"differs in {', '.join(self.settings)}"] * bool(self.settings)
        )


def differences(model: Skeleton, base: Skeleton) -> list[Difference]:
    """Every component that either has, in the order of their names."""
    ours, theirs = _configurations(model), _configurations(base)
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = model.tensors.get(name, {}), base.tensors.get(name, {})
        settings = _settings(ours.get(name, {}), theirs.get(name, {}))
        if name.startswith("tokenizer"):
            settings += strange_files(model.directory / name, base.directory / name, getattr(model.pipeline, name))
        found.append(Difference(name, _changed(here, there), len(here.keys() | there.keys()), settings))
    return found


# -- weights --------------------------------------------------------------------------------------------------------


def _changed(here: Mapping[str, Place], there: Mapping[str, Place]) -> int:
    with ExitStack() as stack:
        files = {place.file for place in (*here.values(), *there.values())}
        handles = {path: stack.enter_context(safe_open(path, framework="pt")) for path in sorted(files)}

        def read(place: Place) -> torch.Tensor:
            value: torch.Tensor = handles[place.file].get_tensor(place.name)
            return value

        shared = here.keys() & there.keys()
        return len(here.keys() ^ there.keys()) + sum(not _same(read(here[name]), read(there[name])) for name in shared)


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal as numbers, the base's rounded to our type; to whole numbers nothing is rounded: they leave nothing."""
    if ours.is_floating_point():
        theirs = theirs.to(ours.dtype)
    return ours.shape == theirs.shape and torch.equal(ours.double(), theirs.double())


# -- everything else ------------------------------------------------------------------------------------------------


def _configurations(model: Skeleton) -> dict[str, dict[str, Any]]:
    """What every component is configured as."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in model.pipeline.components.items():
        if part is None:
            continue
        if name.startswith("tokenizer"):
            found[name] = described(part)
            continue
        config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
        kept = {key: value for key, value in config.items() if key not in _UNTOLD and not key.startswith("_")}
        found[name] = kept | {"class": type(part).__name__}
    index = model.pipeline.config
    zeros = index.get("force_zeros_for_empty_prompt", None)
    return found | {"pipeline": {"class": type(model.pipeline).__name__, "force_zeros_for_empty_prompt": zeros}}


def _settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    def told(config: Mapping[str, Any], key: str) -> str:
        return json.dumps(config.get(key), sort_keys=True, default=list)

    return sorted(key for key in ours.keys() | theirs.keys() if told(ours, key) != told(theirs, key))
