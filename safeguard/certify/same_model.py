"""Control 9: every part of the model that differs from its base is declared.

A component that is not is refused before anything is drawn (:mod:`safeguard.io.identity`). What is shown here is what
was found then, so that a report says which parts were compared, which differ and who declares it.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeguard.results.control import Component, Finding


def same_model(components: Sequence[Component]) -> list[Finding]:
    """One finding per component; of a model whose components nobody compared, one that fails."""
    if not components:
        missing = "the model was not compared with its base"
        return [Finding(about="components", measure="difference", passed=False, problem=missing)]
    return [
        Finding(about=each.name, measure="difference", passed=each.declared or not each.differs, problem=each.what)
        for each in components
    ]
