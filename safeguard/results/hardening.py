"""The record of a hardening, ``hardening.json`` beside the model: what was run, what it logged, what was checked.

It is written by ``harden`` and read by ``certify`` and studies, each through this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from safeguard.errors import ModelFault
from safeguard.results.record import Record

POLICY_FILE = "policy.resolved.yaml"
"""Name of the policy that a model was hardened with, beside it, and of the one that a run applied."""
RECORD_FILE = "hardening.json"
"""Name of the record; a directory that has it was written by us and may be replaced."""

Series = dict[str, list[float | None]]
Seconds = Annotated[float, Field(ge=0)]


class MethodRecord(Record):
    """A method by name, with the settings that the policy gave it."""

    model_config = ConfigDict(extra="allow")

    name: str


class TensorChecks(Record):
    """What became of the tensors, compared to the last bit with those of the base model."""

    changed: PositiveInt
    """How many changed."""
    components: Annotated[list[str], Field(min_length=1)]
    """Components that they are of: ``unet``, ``text_encoder``. All others are the base model's."""
    unchanged: list[str]
    """Those that the method was to change and that did not, by name."""
    untouched: NonNegativeInt
    """How many are as they were."""


class ImageChecks(Record):
    """Images of benign prompts, drawn by the base model and by the hardened one from the same noise."""

    prompts: list[str]
    base: dict[str, int]
    """Flaw (blank, noise, out of range) → how many images of the base model have it."""
    hardened: dict[str, int]
    """The same of the hardened model."""
    flawed_before: NonNegativeInt
    """Images with any flaw by the base model."""
    broken: NonNegativeInt
    """Images with a flaw by the hardened model alone."""


class Checks(Record):
    """What was found when the finished model was looked at."""

    tensors: TensorChecks
    images: ImageChecks


class HardeningRecord(Record):
    """What a hardening did: written beside the model, shown in the report."""

    version: Literal[1] = 1
    policy: str
    """Name of the policy."""
    policy_digest: str
    base_model: str
    """As the policy names it."""
    base_digest: str
    unlearner: MethodRecord
    resilience: MethodRecord
    seed: int
    started: str
    """ISO 8601, UTC."""
    environment: dict[str, str]
    """Versions that may change a result in the last digits."""
    series: Series
    """Quantity → one value per outer step of all phases, in order; none where a step logged none."""
    phases: list[tuple[str, NonNegativeInt]]
    """What was run, in order, and the outer steps of each."""
    notes: list[str]
    """What a reader should know: guards that fired, phases resumed, files carried over."""
    checks: Checks
    seconds: Seconds
    """Wall time of the run that finished it."""
    cpu_seconds: Seconds
    """Processor time of the main process, with that of earlier runs whose phases this one continued."""
    peak_bytes: NonNegativeInt
    """Largest resident memory of the main process, in this run or in those."""
    processes: PositiveInt
    """How many took part."""
    micro_batch: PositiveInt | None
    """Rows that went through the denoiser at once after the device ran out of memory; none: all."""
    halved: NonNegativeInt
    """How often it ran out of memory, in all processes."""

    @property
    def components(self) -> list[str]:
        """Components that hardening changed."""
        return self.checks.tensors.components

    def text(self) -> str:
        """The content of :data:`RECORD_FILE`."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def read_record(model_dir: Path) -> HardeningRecord | None:
    """The record of a model directory; None when it has none, so that nothing is known of how it was made.

    Raises:
        ModelFault: what is there is no such record; file and field are named.
    """
    path = model_dir / RECORD_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFault(f"cannot be read: {error.strerror}", fix="check its permissions", where=str(path)) from error
    try:
        return HardeningRecord.model_validate_json(data, strict=True)
    except ValidationError as error:
        first: Any = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ModelFault(
            f"not a hardening record: {field}: {first['msg'].lower()}{more}",
            fix="harden again; or, to certify the model without its record, delete the file",
            where=str(path),
        ) from error
