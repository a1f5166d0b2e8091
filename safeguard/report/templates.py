"""The Jinja environment of both renderings: sandboxed, strict, and every value made harmless on its way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from safeguard import wording
from safeguard.resources import resource_dir
from safeguard.results import words

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """Text with control and direction-changing characters spelled out, so that nothing reads as what it is not."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


@cache
def environment(escape: Callable[[str], str]) -> ImmutableSandboxedEnvironment:
    """Templates of ``reports/``.

    Args:
        escape: applied to every string a template prints (before the HTML escaping that autoescape adds).
    """

    def finalize(value: Any) -> Any:
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return escape(visible(value))

    jinja = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(resource_dir("reports")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("amount", "percent", "declared", "plural", "number", "score", "duration", "moment", "when")
    jinja.filters.update({name: getattr(wording, name) for name in names})
    jinja.filters |= {"reason": words.reason, "findings": words.control}
    jinja.filters |= {"depth": words.depth, "trials": words.trials}
    return jinja
