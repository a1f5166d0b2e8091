"""Base of every method's settings, and types that settings and code share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Source = Literal["concept", "related", "retain"]
"""Whose images a fine-tune trains on: the concepts', their related subjects', the retained ones'."""
Precision = Literal["float32", "bfloat16"]
"""Of matrix products and convolutions."""


class MethodConfig(BaseModel):
    """Strict and immutable; field docstrings become descriptions, defaults are the paper's unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
