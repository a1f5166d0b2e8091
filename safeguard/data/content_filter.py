"""Prompts that put a minor-age word beside a sexual one are dropped, always, before any image is generated.

Text is compared as it may be read (:mod:`safeguard.data.plain_text`), so that neither width, accents, hidden characters
and look-alikes nor joiners, digits and words run together make a difference. A closed list cannot find what it does
not hold: the filter is one guard among others, and errs on the side of dropping.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from safeguard.data import content_words as words
from safeguard.data.plain_text import letter_runs, readings, skeleton
from safeguard.errors import UsageFault

LONGEST = 24
"""Letters of the longest word that is looked for inside another."""


class Content(NamedTuple):
    """What a word speaks of."""

    minor: bool
    sexual: bool


BOTH = Content(True, True)


def entries(text: str) -> list[str]:
    """The entries of a word list as readings have them; a hyphen there stands for a blank."""
    return [skeleton(entry).replace("-", " ") for entry in text.split()]


def forms(entry: str) -> set[str]:
    """An entry with its plurals, and with plurals of these; an apostrophe is none or a blank in readings."""
    endings = ("", "s", "es", "z")
    many = {entry + one + another for one in endings for another in endings}
    return many | {entry[:-1] + "ies"} if entry.endswith("y") else many


def _either(phrases: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(set(phrases), key=len, reverse=True)))


class WordList:
    """Words, phrases and beginnings of one kind.

    Attributes:
        whole: words with their plurals.
        starts: beginnings of words.
        phrases: with blanks around them.
        inside, short_inside: find words of four letters or more, and of three, inside a word.
    """

    def __init__(self, text: str, unspaced: str) -> None:
        every = entries(text)
        self.starts = tuple(entry[:-1] for entry in every if entry.endswith("*") and " " not in entry)
        complete = {form for entry in every if not entry.endswith("*") for form in forms(entry)}
        self.whole = {form for form in complete if " " not in form}
        open_ended = {f" {entry[:-1]}" for entry in every if entry.endswith("*") and " " in entry}
        self.phrases = [*(f" {form} " for form in complete if " " in form), *open_ended]
        self.unspaced = re.compile(_either(entries(unspaced)))
        self.parts = self.whole | set(self.starts)
        self.inside = re.compile(_either([word for word in self.parts if len(word) > 3]))
        self.short_inside = re.compile(_either([word for word in self.parts if len(word) == 3]))

    def has(self, word: str) -> bool:
        """Whether a word is one of these."""
        return word in self.whole or word.startswith(self.starts) or bool(self.unspaced.search(word))

    def in_phrases(self, text: str) -> bool:
        """Whether a text, with a blank at both ends, holds one of the phrases."""
        return any(phrase in text for phrase in self.phrases)


MINOR = WordList(words.MINOR, words.MINOR_UNSPACED)
SEXUAL = WordList(words.SEXUAL, words.SEXUAL_UNSPACED)

_NUMBER = f"(?:0?[0-9]|1[0-7]|{_either(entries(words.NUMBERS))})"
_BEYOND = f"(?P<beyond>(?:{_either(entries(words.TENS))}) (?:and )?)?"
_AGE = re.compile(
    rf"\b{_BEYOND}{_NUMBER}(?: and a haif| 1 2)?(?: (?:to |or |and )?\d+)? ?"
    rf"(?:(?:{_either(entries(words.OLD))})\b|{_either(entries(words.OLD_UNSPACED))})"
    rf"|\b(?:{_either(entries(words.AGED))}) {_NUMBER}\b(?! (?:{_either(entries(words.TENS))})\b)"
    rf"|\b(?:{_either(entries(words.UNDER))}) ?(?:18|eighteen)\b"
)
_PARTS = MINOR.parts | SEXUAL.parts | set(entries(words.FILLERS))


@lru_cache(maxsize=2**16)
def _of_word(word: str) -> Content:
    """What one word speaks of, or what several that are run together do."""
    found = Content(MINOR.has(word), SEXUAL.has(word))
    if len(word) < 6 or found == BOTH:
        return found
    inside = _inside(word)
    if inside == BOTH or not _run_together(word):
        return BOTH if inside == BOTH else found
    minor = inside.minor or bool(MINOR.short_inside.search(word))
    sexual = inside.sexual or bool(SEXUAL.short_inside.search(word))
    return BOTH if minor and sexual else inside


def _inside(letters: str) -> Content:
    return Content(bool(MINOR.inside.search(letters)), bool(SEXUAL.inside.search(letters)))


def _run_together(word: str) -> bool:
    """Whether nothing but known words make up a word."""
    reached = {0}
    for start in range(len(word)):
        if start in reached:
            ends = range(start + 1, min(start + LONGEST, len(word)) + 1)
            reached |= {end for end in ends if word[start:end] in _PARTS}
    return len(word) in reached


def _is_minor_age(reading: str) -> bool:
    return any(not age["beyond"] for age in _AGE.finditer(reading))


def content(text: str) -> Content:
    """What a text speaks of in any of its readings; whether of a minor is looked at where it speaks of sex only."""
    found = readings(text)
    known = [_of_word(word) for word in set(" ".join(found).split())]
    known += [_inside(run) for reading in found for run in letter_runs(reading)]
    between = " , ".join(["", *found, ""])
    if not (any(word.sexual for word in known) or SEXUAL.in_phrases(between)):
        return Content(any(word.minor for word in known), False)
    minor = any(word.minor for word in known) or MINOR.in_phrases(between) or any(map(_is_minor_age, found))
    return Content(minor, True)


def is_allowed(prompt: str) -> bool:
    """False when the prompt combines a minor-age word with sexual content; errs on the side of dropping."""
    return content(prompt) != BOTH


def check_allowed(prompts: Iterable[str]) -> None:
    """The last guard of whoever draws images.

    Raises:
        UsageFault: the filter refuses one of the prompts.
    """
    if not all(map(is_allowed, set(prompts))):
        raise UsageFault(
            "the content filter refuses a prompt that was to be drawn",
            fix="minor-age words beside sexual content are never generated; take the prompt out",
        )


def keep_allowed(prompts: Iterable[str], *, context: str = "") -> tuple[list[str], int]:
    """The allowed prompts in order, and how many were dropped.

    Args:
        context: text that applies to every prompt (the concept's name, say) and is judged together with each.
    """
    rows = list(prompts)
    kept = [row for row in rows if is_allowed(f"{context} {row}")]
    return kept, len(rows) - len(kept)
