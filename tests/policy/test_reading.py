"""Hostile and broken YAML is refused with file, line and column; everything else reads as JSON would."""

from __future__ import annotations

import pytest

from safeguard.errors import PolicyFault
from safeguard.policy import reading
from safeguard.policy.reading import Place, load_yaml, plain_scalar


def refusal(text: str) -> PolicyFault:
    with pytest.raises(PolicyFault) as caught:
        load_yaml(text, name="p.yaml")
    assert caught.value.fix
    return caught.value


def test_every_node_and_key_has_its_place():
    data, positions = load_yaml("a: 1\nb:\n  - x\n  - {c: [true, null]}\n")
    assert data == {"a": 1, "b": ["x", {"c": [True, None]}]}
    assert positions.values == {
        (): Place(1, 1),
        ("a",): Place(1, 4),
        ("b",): Place(3, 3),
        ("b", 0): Place(3, 5),
        ("b", 1): Place(4, 5),
        ("b", 1, "c"): Place(4, 9),
        ("b", 1, "c", 0): Place(4, 10),
        ("b", 1, "c", 1): Place(4, 16),
    }
    assert positions.keys == {("a",): Place(1, 1), ("b",): Place(2, 1), ("b", 1, "c"): Place(4, 6)}
    assert positions.find(("b", 1, "missing", "deeper")) == Place(4, 5)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2026-01-30", "2026-01-30"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("1e-5", 1e-5),
        ("-3", -3),
        (".5", 0.5),
        ("True", True),
        ("~", None),
        ("", None),
        ("0.1.0", "0.1.0"),
    ],
)
def test_plain_words(word: str, value: object):
    found = plain_scalar(word)
    assert found == value
    assert type(found) is type(value)


def test_quoted_words_are_text():
    assert load_yaml("['1', \"true\", '~', '']")[0] == ["1", "true", "~", ""]
    assert load_yaml("a: |\n  5\n")[0] == {"a": "5\n"}


def test_an_alias_is_a_copy_at_its_own_place():
    data, positions = load_yaml("a: &x {k: [1]}\nb: *x\n")
    assert data == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert data["a"] is not data["b"]
    assert positions.values["b",] == Place(2, 4)
    assert positions.values["b", "k"] == Place(1, 11)


def test_alias_bomb_stops_at_the_number_of_values():
    levels = "".join(f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]\n" for i in range(1, 28))
    error = refusal("l0: &l0 [x, x, x, x]\n" + levels)
    assert "more than 20000 values" in error.what
    assert error.where == "p.yaml:12:18"  # 12,271 values up to l10, 6,143 more per alias of it


def test_too_many_aliases():
    error = refusal("a: &a x\nb: [" + ", ".join(["*a"] * 65) + "]")
    assert "more than 64 aliases" in error.what
    assert load_yaml("a: &a x\nb: [" + ", ".join(["*a"] * 64) + "]")[0]["b"] == ["x"] * 64


def test_aliases_cannot_deepen_beyond_the_limit():
    steps = "".join(f"l{i}: &l{i} [*l{i - 1}]\n" for i in range(1, 40))
    assert "nested deeper than 32" in refusal("l0: &l0 [x]\n" + steps).what


def test_recursive_alias():
    assert refusal("a: &a [*a]").where == "p.yaml:1:8"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_nesting(opening: str, closing: str):
    load_yaml(opening * 31 + "x" + closing * 31)
    assert "nested deeper than 32" in refusal(opening * 32 + "x" + closing * 32).what
    assert "nested deeper than 32" in refusal(opening * 100_000).what


def test_too_many_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MAX_NODES", 10)
    assert load_yaml("[" + "a, " * 9 + "]")[0] == ["a"] * 9
    assert refusal("[" + "a, " * 10 + "]").where == "p.yaml:1:29"


def test_huge_file(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(PolicyFault, match=r"huge\.yaml:1:1: the file is larger than 1 MiB"):
        load_yaml(path)
    assert "larger" in refusal("é" * 2**19 + "#").what


def test_the_last_byte_that_fits(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 8)
    path = tmp_path / "small.yaml"
    path.write_bytes(b"a: 12345")
    assert load_yaml(path)[0] == {"a": 12345}
    path.write_bytes(b"a: 123456")
    with pytest.raises(PolicyFault, match="larger"):
        load_yaml(path)


def test_duplicate_key():
    error = refusal("a:\n  b: 1\n  c: 2\n  'b': 3\n")
    assert error.where == "p.yaml:4:3"
    assert error.what == "key 'b' appears twice, first in line 2"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: !!python/object/apply:os.system [ls]", "1:4", "'!!python/object/apply:os.system'"),
        ("a: !!str 5", "1:4", "'!!str'"),
        ("a: ! 5", "1:4", "tag '!'"),
        ("a: !own {b: 1}", "1:4", "'!own'"),
        ("!!map {a: 1}", "1:1", "'!!map'"),
        ("{!!str a: 1}", "1:2", "plain text"),
        ("? [a]\n: b", "1:3", "plain text"),
        ("a: &k b\n*k : c", "2:1", "plain text"),
        ("5: x", "1:1", "'5' is not text"),
        ("true: x", "1:1", "'true' is not text"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "3:3", "merge keys"),
        ("a\n---\nb", "2:1", "second document"),
        ("a: .inf", "1:4", "not finite"),
        ("a: .NaN", "1:4", "not finite"),
        ("a: 1e999", "1:4", "not finite"),
        ("a: " + "9" * 5000, "1:4", "too large"),
        ('a: "\\x1b[2J"', "1:4", "control character '\\x1b'"),
        ('a: "\\ud800"', "1:4", "control character"),
        ("a: b\n\x07", "2:1", "unprintable"),
        ("a: b: c", "1:5", "not valid YAML"),
        ("a:\n\t- b", "2:1", "cannot start any token"),
        ("a: 'open", "1:9", "unexpected end"),
        ("a: *unknown", "1:4", "no anchor"),
    ],
)
def test_refused_with_place(text: str, where: str, what: str):
    error = refusal(text)
    assert what in error.what
    assert error.where == f"p.yaml:{where}"


def test_quoted_merge_key_is_a_word():
    assert load_yaml("'<<': x")[0] == {"<<": "x"}


def test_unreadable_files(tmp_path):
    with pytest.raises(PolicyFault, match="cannot read the file: No such file"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(PolicyFault, match="cannot read the file: Is a directory"):
        load_yaml(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: x\nb: café".encode("latin-1"))
    with pytest.raises(PolicyFault, match=r"latin\.yaml:2:7: the file is not UTF-8"):
        load_yaml(latin)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_yaml(path)[0] == {"a": 1}
