"""Base of every method's settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class MethodConfig(BaseModel):
    """Strict and immutable; field docstrings become descriptions, defaults are the paper's unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
