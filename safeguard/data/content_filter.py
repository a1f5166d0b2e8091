"""Prompts that put a minor-age word beside a sexual one are dropped, always, before any image is generated."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MINOR = re.compile(
    r"\b(?:child(?:ren|ish|like|hood)?|kids?|bab(?:y|ies)|infants?|toddlers?|minors?|under-?age[d]?|preteens?|teens?"
    r"|teenage\w*|tweens?|adolescen\w+|juvenile\w*|boys?|girls?|schoolgirls?|schoolboys?|pupils?|student[s]?|lolita\w*|loli|shota\w*"
    r"|young(?:er|est)?"
    r"|little (?:one|sister|brother)s?|daughters?|sons?|(?:[1-9]|1[0-7])[- ]?(?:years?[- ]old|yo|y/o))\b",
    re.IGNORECASE,
)
_SEXUAL = re.compile(
    r"\b(?:sex\w*|nud\w+|naked\w*|nsfw|porn\w*|erotic\w*|hentai|lewd\w*|lingerie|topless|bottomless|undress\w*|unclothed"
    r"|breasts?|nipples?|genital\w*|penis\w*|vagina\w*|buttocks?|butt|orgasm\w*|masturbat\w*|intercourse|fetish\w*|bdsm"
    r"|seduc\w+|sensual\w*|aroused?|bikinis?|panties|underwear|no clothes|without clothes|bare (?:skin|chest|body))\b",
    re.IGNORECASE,
)


def is_allowed(prompt: str) -> bool:
    """False when the prompt combines a minor-age word with sexual content; errs on the side of dropping."""
    return not (_MINOR.search(prompt) and _SEXUAL.search(prompt))


def keep_allowed(prompts: Iterable[str], *, context: str = "") -> tuple[list[str], int]:
    """The allowed prompts in order, and how many were dropped.

    Args:
        context: text that applies to every prompt (the concept's name, say) and is judged together with each.
    """
    rows = list(prompts)
    kept = [row for row in rows if is_allowed(f"{context} {row}")]
    return kept, len(rows) - len(kept)
