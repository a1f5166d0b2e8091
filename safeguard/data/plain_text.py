"""Text as a reader sees it: letters that only look different, hidden characters and joiners taken away.

The same text can be written in countless ways that a text encoder, or a person, still reads. :func:`folded` undoes
what a single character can do; :func:`readings` gives what a folded text may say, since a digit, a point or a blank
inside a word can be read in more than one way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

_CONFUSABLE = {
    ord(odd): plain
    for alphabet, latin in (
        ("авекмнорстухгпьіјѕһԁԛԝӏԍ", "abekmhopctyxrnbijshdqwlg"),  # Cyrillic
        ("αβεηικνορτυχγωμ", "abenikvoptuxywu"),  # Greek
        ("օսոհցզ", "ounhgq"),  # Armenian
        ("ᎠᎡᎢᎥᎪᎬᎳᎷᎻᏀᏚᏢᏟᏞᏴᏃᎫᏒᏙᏦ", "drtiaewmhgspclbzjrvk"),  # Cherokee
    )
    for odd, plain in zip(alphabet, latin, strict=True)
}
"""Letters of other alphabets that look like Latin ones."""
_ALIKE = str.maketrans("l", "i")
"""An l, an i and a 1 look alike, so readings have one of them only."""
_LETTER = re.compile(
    r"(?:LATIN|SQUARED|CIRCLED|REGIONAL INDICATOR SYMBOL).*\bLETTER "
    r"(?:(?:SMALL CAPITAL|DOTLESS|OPEN|TURNED|REVERSED|SCRIPT|LONG|INSULAR|SIDEWAYS|BARRED) )*([A-Z]{1,2})(?: |$)"
)
"""Which letter a character is that does not decompose, in its Unicode name: LATIN SMALL LETTER O WITH STROKE."""
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters and symbols that are drawn as nothing."""
_WARNING_SIGN = "\N{NO ONE UNDER EIGHTEEN SYMBOL}"
_STANDS_FOR = str.maketrans("0134578@$!|€", "oieasbbasiie")
"""Letters that digits and signs are written for."""
_SIGNS = re.compile(r"(?<=[^\W\d_])[0134578@$!|€]|[0134578@$!|€](?=[^\W\d_])")
_INSIDE = re.compile(r"(?<=[^\W\d_])[0134578@$!|€](?=[^\W\d_])")
_WITHIN_NUMBERS = re.compile(r"(?<=\d)(?:\.\d+|,(?=\d{3}\b))")
"""Decimals, and commas between thousands."""
_JOINER = re.compile(r"[^\w\s]|_")
_TOKEN = re.compile(r"\d+|[^\W\d]+")
_REPEATED = re.compile(r"([^\W\d_])\1{2,}")
MOST_JOINERS = 6
"""Signs that are tried one by one as standing inside words or not."""
_LETTER_BY_LETTER = re.compile(r"(?<!\S)\w(?: \w){2,}(?!\S)")


@cache
def _plain(character: str) -> str:
    """What a character is to a reader, in lower case; nothing for one that is not seen, words for a pictogram."""
    if character == _WARNING_SIGN:
        return " nsfw "
    found = ""
    for part in unicodedata.normalize("NFKD", character):
        kind = unicodedata.category(part)
        if kind in ("Mn", "Me", "Cf") or part in _BLANK_LETTERS:
            continue
        named = _LETTER.match(unicodedata.name(part, "")) if ord(part) > 127 else None
        if named:
            found += named[1].lower()
        elif kind == "So":
            found += f" {unicodedata.name(part, '').lower()} "
        elif kind == "Nd":
            found += str(unicodedata.decimal(part))
        elif kind in ("Cc", "Zl", "Zp", "Zs"):
            found += " "
        else:
            found += part.casefold()
    return found.translate(_CONFUSABLE)


def folded(text: str) -> str:
    """Lower-case text without accents and unseen characters; look-alikes are Latin letters, digits are 0 to 9."""
    return text.lower() if text.isascii() and text.isprintable() else "".join(map(_plain, text))


def skeleton(text: str) -> str:
    """The folded text with every l as i: what words are compared by."""
    return folded(text).translate(_ALIKE)


def readings(text: str) -> set[str]:
    """What a text may say: words and numbers with single blanks between, every l as i (see :func:`skeleton`)."""
    found = set()
    plain = _WITHIN_NUMBERS.sub("", folded(text))
    for spelt in {plain, *_shortened(plain)}:
        for decoded in {spelt, *_decoded(spelt)}:
            for dropped in _dropped(decoded):
                words = _words(decoded, dropped)
                found |= {words, _joined(words)}
    return found


def _dropped(text: str) -> set[str]:
    """Signs that may stand inside words: none, any one, all but one, all."""
    signs = "".join(sorted(set(_JOINER.findall(text))))
    some = signs[:MOST_JOINERS]
    return {"", signs, *some, *(signs.replace(sign, "") for sign in some)}


def _shortened(text: str) -> Iterator[str]:
    """Letters that are written three times or more stand for one, or for two."""
    if _REPEATED.search(text):
        yield from (_REPEATED.sub(r"\1", text), _REPEATED.sub(r"\1\1", text))


def _decoded(text: str) -> Iterator[str]:
    """Digits and signs read as the letters that they are written for: inside words alone, and at their ends as well."""
    if _SIGNS.search(text):
        for pattern in (_INSIDE, _SIGNS):
            yield _until_settled(pattern, text)


def _until_settled(pattern: re.Pattern[str], text: str) -> str:
    while (read := pattern.sub(lambda sign: sign[0].translate(_STANDS_FOR), text)) != text:
        text = read
    return text


def _words(text: str, dropped: str) -> str:
    """Words and numbers apart; of what is neither, these signs are nothing and others are blanks."""
    if dropped:
        text = text.translate(dict.fromkeys(map(ord, dropped)))
    return " ".join(_TOKEN.findall(_JOINER.sub(" ", text.translate(_ALIKE))))


def _joined(text: str) -> str:
    """Letters that stand alone, three or more in a row, made one word."""
    together = _LETTER_BY_LETTER.sub(lambda run: run[0].replace(" ", ""), text)
    return text if together == text else _words(together, "")


def letter_runs(reading: str) -> list[str]:
    """Words of a reading that are written letter by letter; where one of them ends and the next begins is not known."""
    return [run.replace(" ", "") for run in _LETTER_BY_LETTER.findall(reading)]
