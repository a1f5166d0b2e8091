"""What a tokenizer makes of a text, as data that can be compared; and whether all of its files say the same.

One library reads ``tokenizer.json``, an older one ``vocab.json`` and ``merges.txt``. A directory that has both and in
which they disagree would be one model here and another one there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from safeguard.io.formats import load_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_SETTINGS = ("model_max_length", "padding_side", "truncation_side")


def described(tokenizer: Any) -> dict[str, Any]:
    """The rules of a tokenizer, its vocabulary and its special tokens, by name."""
    rules = _rules(tokenizer.backend_tokenizer)
    model = rules.pop("model")
    special = {name: str(getattr(tokenizer, name)) for name in _SPECIAL}
    settings = {name: getattr(tokenizer, name) for name in _SETTINGS}
    return {**rules, "vocabulary": model.pop("vocab"), **model, **special, **settings}


def strange_files(folder: Path, base: Path, tokenizer: Any) -> Iterator[str]:
    """Names of files that are neither the base's nor say what the tokenizer says, which was read from the folder.

    Args:
        base: folder of the base's tokenizer.
    """
    for name, agrees in _READERS.items():
        path = folder / name
        if path.is_file() and _content(path) != _content(base / name) and not agrees(path, tokenizer):
            yield name


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _rules(backend: Any) -> dict[str, Any]:
    """All but padding and truncation, which are those of the last call."""
    rules: dict[str, Any] = json.loads(backend.to_str())
    return {name: value for name, value in rules.items() if name not in ("padding", "truncation")}


def _whole(path: Path, tokenizer: Any) -> bool:
    try:
        return _rules(Tokenizer.from_file(str(path))) == _rules(tokenizer.backend_tokenizer)
    except Exception:  # the library raises nothing more particular for a file it cannot read
        return False


def _tokens(path: Path, tokenizer: Any) -> bool:
    value, known = load_json(path), tokenizer.get_vocab()
    return isinstance(value, dict) and all(known.get(token) == index for token, index in value.items())


def _vocabulary(path: Path, tokenizer: Any) -> bool:
    """All of the vocabulary, but what may stand among the added tokens."""
    value, added = load_json(path), tokenizer.get_added_vocab()
    return _tokens(path, tokenizer) and (tokenizer.get_vocab().keys() - added.keys()) <= value.keys()


def _merges(path: Path, tokenizer: Any) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = [line for line in lines if line and not line.startswith("#version")]
    merges = _rules(tokenizer.backend_tokenizer)["model"]["merges"]
    return found == [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def _special_tokens(path: Path, tokenizer: Any) -> bool:
    value = load_json(path)
    named = {name: token.get("content") if isinstance(token, dict) else token for name, token in value.items()}
    return all(getattr(tokenizer, name, None) == token for name, token in named.items())


_READERS: dict[str, Callable[[Path, Any], bool]] = {
    "tokenizer.json": _whole,
    "vocab.json": _vocabulary,
    "merges.txt": _merges,
    "added_tokens.json": _tokens,
    "special_tokens_map.json": _special_tokens,
}
"""File -> whether it says what the tokenizer says."""
