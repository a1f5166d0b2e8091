"""Base of every method's settings, and types that settings and code share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

Source = Literal["concept", "related", "retain"]
"""Whose images a fine-tune trains on: the concepts', their related subjects', the retained ones'."""
Precision = Literal["float32", "bfloat16"]
"""Of matrix products and convolutions."""


class MethodConfig(BaseModel):
    """Strict and immutable; field docstrings become descriptions, defaults are the paper's unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def tiny(cls) -> Self:
        """Settings with which the method does all it can in about a second, on a model of random weights.

        The contract tests (``tests/contracts``) run every registered method with them. A method whose defaults take
        longer gives its own: at least four steps where there are steps, and batches of at least two.
        """
        return cls()
