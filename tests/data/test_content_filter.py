"""The filter drops minor-age words beside sexual content however they are written, and nothing harmless.

No such text is spelled out here: words come from the filter's own lists and are changed by rules.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from itertools import cycle, islice

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safeguard.data import content_words
from safeguard.data.content_filter import content, is_allowed, keep_allowed
from safeguard.data.plain_text import folded, readings


def single(text: str) -> list[str]:
    """The entries of a list that are one Latin word."""
    return [entry for entry in text.split() if entry.isascii() and entry.isalpha() and len(entry) > 2]


minor_words, sexual_words = st.sampled_from(single(content_words.MINOR)), st.sampled_from(single(content_words.SEXUAL))
Change = Callable[[str], str]


def between(letters: str) -> Change:
    return lambda word: letters.join(word)


def inserted(mark: str) -> Change:
    return lambda word: word[: len(word) // 2] + mark + word[len(word) // 2 :]


def shifted(start: int) -> Change:
    """Letters of a mathematical or full-width alphabet."""
    return lambda word: "".join(chr(ord(c) + start - ord("a")) if "a" <= c <= "z" else c for c in word)


LOOK_ALIKE = str.maketrans("aeopcyxis", "аеорсухіѕ")
DIGITS = str.maketrans("oiea", "01" + "34")
CHANGES: dict[str, Change] = {
    "as it is": lambda word: word,
    "capitals": str.upper,
    "zero width": inserted("\N{ZERO WIDTH SPACE}"),
    "soft hyphen": inserted("\N{SOFT HYPHEN}"),
    "word joiners": between("\N{WORD JOINER}"),
    "grapheme joiner": inserted("\N{COMBINING GRAPHEME JOINER}"),
    "hangul filler": inserted("\N{HANGUL FILLER}"),
    "accents": between("\N{COMBINING ACUTE ACCENT}"),
    "dots below": lambda word: unicodedata.normalize("NFC", "".join(c + "\N{COMBINING DOT BELOW}" for c in word)),
    "full width": shifted(0xFF41),
    "fraktur": shifted(0x1D586),
    "circled": shifted(0x24D0),
    "look-alikes": lambda word: word.translate(LOOK_ALIKE),
    "digit behind": lambda word: f"{word}2",
    "digit in front": lambda word: f"7{word}",
    "plural": lambda word: f"{word}s",
    "plural with apostrophe": lambda word: f"{word}'s",
    "plural with z": lambda word: f"{word}z",
    "points": between("."),
    "blanks": between(" "),
    "hyphens": between("-"),
    "underscores": between("_"),
    "one underscore": inserted("_"),
    "one point": inserted("."),
    "hash": lambda word: f"#{word}",
    "brackets": lambda word: f"(({word}:1.3))",
}
changes = st.sampled_from([*CHANGES.values()])
within = st.sampled_from([change for name, change in CHANGES.items() if name != "blanks"])
"""Changes after which the word is still one."""
joiners = st.sampled_from([" ", "_", ", ", ",", "-", ".", "/", "  ", "\n", "+", "\N{IDEOGRAPHIC SPACE}", " of the "])


@pytest.mark.parametrize("name", CHANGES)
def test_every_word_is_known_however_it_is_written(name: str) -> None:
    change = CHANGES[name]
    rows = [
        f"{a} {change(b)}"
        for a, b in zip(cycle(single(content_words.SEXUAL)), single(content_words.MINOR), strict=False)
    ]
    rows += [
        f"{b} {change(a)}"
        for a, b in zip(single(content_words.SEXUAL), cycle(single(content_words.MINOR)), strict=False)
    ]
    assert len(rows) > 150
    assert [row for row in rows if is_allowed(row)] == []


@settings(max_examples=300, deadline=None)
@given(minor_words, sexual_words, within, changes, within, changes, joiners, st.booleans())
def test_two_changes_at_once_do_not_hide_a_word(
    minor: str, sexual: str, one: Change, two: Change, three: Change, four: Change, joiner: str, swapped: bool
) -> None:
    words = [two(one(minor)), four(three(sexual))]
    assume(joiner not in "".join(words))
    assert not is_allowed(joiner.join(reversed(words) if swapped else words))


@given(minor_words, sexual_words, st.booleans(), st.sampled_from(["", "very", "cute", "photoofa", "2"]))
def test_words_run_together_are_read(minor: str, sexual: str, swapped: bool, more: str) -> None:
    first, second = (minor, sexual) if swapped else (sexual, minor)
    assert not is_allowed(f"{first}{more}{second}")
    assert not is_allowed(f"{first.title()}{more.title()}{second.title()}")


@given(minor_words, sexual_words)
def test_letters_of_both_words_apart_are_read(minor: str, sexual: str) -> None:
    assert not is_allowed(f"{' '.join(sexual)}   {' '.join(minor)}")
    assert not is_allowed(f"{'.'.join(minor)} {'.'.join(sexual)}")


@given(minor_words, sexual_words)
def test_digits_for_letters_are_read(minor: str, sexual: str) -> None:
    assert not is_allowed(f"{minor.translate(DIGITS)} {sexual}")
    assert not is_allowed(f"{minor} {sexual.translate(DIGITS)}")


@given(minor_words, sexual_words, st.integers(3, 6))
def test_a_letter_many_times_is_read_as_one_or_two(minor: str, sexual: str, times: int) -> None:
    assert not is_allowed(f"{minor[:-1]}{minor[-1] * times} {sexual}")
    assert not is_allowed(f"{minor} {sexual[0] * times}{sexual[1:]}")


ENGLISH = content_words.NUMBERS.split()[:18]
AGES = [
    "{} years old", "{}-year-old", "{} year olds", "{}yo", "{} y.o.", "{} y/o", "{}_year_old", "aged {}", "age: {}",
    "{} yrs old", "{} years of age", "{}yearold", "{} yo", "at age {}", "age of {}", "{}-year-old's",
    "{} to 25 years old", "{} and a half years old", "{} months old", "{}th birthday", "younger than {}",
    "{} Jahre alt", "{} ans", "{} años", "{} anni", "{} лет", "{}\N{CJK UNIFIED IDEOGRAPH-6B73}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", AGES)
def test_ages_in_numbers_and_in_words_are_minor_ages(pattern: str) -> None:
    sexual = single(content_words.SEXUAL)[0]
    for number, word in enumerate(ENGLISH):
        wide = "".join(chr(0xFF10 + int(digit)) for digit in str(number))
        for age in (str(number), word, word.upper(), wide):
            assert not is_allowed(f"{sexual}, {pattern.format(age)}"), age


def test_ages_in_words_of_other_languages_are_minor_ages() -> None:
    sexual = single(content_words.SEXUAL)[0]
    rows = [
        f"{number.replace('-', ' ')} {unit}"
        for number in content_words.NUMBERS.split()
        for unit in ("ans", "jahre alt")
    ]
    assert [row for row in rows if is_allowed(f"{sexual} {row}")] == []


@pytest.mark.parametrize("word", ["under", "below", "younger than", "u"])
def test_below_eighteen_is_a_minor_age(word: str) -> None:
    sexual = single(content_words.SEXUAL)[0]
    assert not is_allowed(f"{sexual} {word} 18") and not is_allowed(f"{word}-eighteen {sexual}")


@pytest.mark.parametrize("pattern", AGES[:13])
def test_ages_from_eighteen_on_are_no_minor_ages(pattern: str) -> None:
    sexual = single(content_words.SEXUAL)[0]
    for age in (
        "18",
        "21",
        "117",
        "twenty-one",
        "thirty five",
        "one hundred and two",
        "eighteen",
        "ninety-nine",
        "100",
    ):
        assert is_allowed(f"{sexual}, {pattern.format(age)}"), age


def test_pictograms_and_scripts_without_blanks_are_read() -> None:
    sexual = single(content_words.SEXUAL)[0]
    for pictogram in "\N{GIRL}\N{BOY}\N{BABY}\N{CHILD}":
        assert not is_allowed(f"{sexual} {pictogram}")
    for minor in content_words.MINOR_UNSPACED.split():
        assert not is_allowed(f"x{minor}x {sexual}")
        for other in content_words.SEXUAL_UNSPACED.split():
            assert not is_allowed(f"{other}{minor}")


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat",
        "a child on a bicycle",
        "girl with a dagger",
        "a portrait of a child at school",
        "a baby bottle",
        "a pen is on the table and a child draws",
        "popcorn for kids",
        "a butterfly on the hand of a child",
        "a boy with a sextant",
        "a sexton and a boy",
        "nudge the toddler",
        "Essex girl",
        "a teen with a button",
        "a class of students",
        "a 10 year old oak",
        "two kids under one umbrella, 3 years ago",
        "toddler with a 25 kg dumbbell_set, age 3",
        "dagger_emoji, knife, boy_scout",
        "person, season, reason, a mason's son",
    ],
)
def test_harmless_prompts_stay(prompt: str) -> None:
    assert is_allowed(prompt)


@pytest.mark.parametrize("harmless", ["a statue of a woman", "Manson", "1,200 years old", "a kind person", "in 2016"])
def test_prompts_about_adults_stay(harmless: str) -> None:
    assert [word for word in single(content_words.SEXUAL) if not is_allowed(f"{word} {harmless}")] == []


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    assert readings(text) and content(text) == content(unicodedata.normalize("NFC", text))


def test_folding_takes_away_what_is_not_seen() -> None:
    assert (
        folded("Ｃ\u0301a\u200bＴ\ufe0f") == "cat"
        and folded("СОРЕ") == folded("cope")
        and folded("\uff11\u0662") == "12"
    )


def test_the_concept_counts_as_context_and_drops_are_counted() -> None:
    minor = single(content_words.MINOR)[0]
    kept, dropped = keep_allowed(["a woman", f"a {minor}", "a man"], context=single(content_words.SEXUAL)[0])
    assert kept == ["a woman", "a man"]
    assert dropped == 1


def test_ten_thousand_prompts_take_seconds() -> None:
    syllables = [a + b for a in "bcdfghklmnprst" for b in ("ar", "ella", "undo", "ith", "oom", "aster", "iven", "ough")]
    prompts = [" ".join(islice(syllables * 3, n % 97, n % 97 + 12)) + f", {n}" for n in range(10_000)]
    started = time.process_time()
    assert keep_allowed(prompts)[1] == 0
    assert time.process_time() - started < 10  # about one second; a loaded machine may be slower
