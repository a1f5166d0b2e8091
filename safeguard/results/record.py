"""Base of everything that is written down: strict, immutable, described field by field."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["hardened", "unlearned", "base"]
"""The certified model, the unlearner alone (control), the untouched base model (control)."""
ComponentName = Literal[
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "pipeline"
]
"""Of a model directory; ``pipeline`` is what ``model_index.json`` says besides."""
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Record(BaseModel):
    """Unknown fields are refused; field docstrings become the schema's descriptions.

    JSON has no NaN: a number that is not finite is written as text that is read back as that number, never as null. A
    loss that is no number would otherwise be none at all once its file is read again.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
    )
