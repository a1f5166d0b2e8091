"""The log of attempts: append-only, chained, kept twice, and never a reason to crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safeguard.errors import UsageFault
from safeguard.results.attempts import FILE, FIRST, Entry, History, attempts, subject
from safeguard.results.record import Verdict

SUBJECT = subject("base", {"axes": ["an axe"]})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attempts" / f"{SUBJECT}.jsonl"


def add(history: History, number: int, verdict: Verdict | None = None, model: str = "model") -> None:
    history.add(
        Entry(
            previous=FIRST,
            event="finished" if verdict else "begun",
            subject=history.subject,
            place=history.place,
            model=model,
            policy="policy",
            nonce=f"{number:032x}",
            started=f"2026-01-{number:02}T00:00:00.000+00:00",
            verdict=verdict,
        )
    )


def history(run_dir: Path, count: int = 3) -> History:
    """One with so many attempts, each begun and finished."""
    found = History(run_dir, SUBJECT)
    for number in range(1, count + 1):
        add(found, number)
        add(found, number, "FAIL" if number % 2 else "PASS")
    return found


def test_attempts_of_any_model_and_run_directory_are_told(tmp_path: Path) -> None:
    history(tmp_path / "one", 2)
    other = History(tmp_path / "two", SUBJECT)
    add(other, 3, "PASS", model="another")
    add(other, 4)
    entries, problems = other.read()
    assert problems == []
    told = [(attempt.model_digest, attempt.verdict) for attempt in attempts(entries)]
    assert told == [("model", "FAIL"), ("model", "PASS"), ("another", "PASS"), ("model", None)], "one never ended"
    assert len(attempts(entries, unless=f"{4:032x}")) == 3


def test_other_concepts_and_other_bases_are_filed_elsewhere(tmp_path: Path) -> None:
    history(tmp_path / "run")
    for other in (subject("another", {"axes": ["an axe"]}), subject("base", {"axes": ["a big axe"]})):
        assert History(tmp_path / "run", other).read() == ([], [])


@pytest.mark.parametrize("cut", [b"", b"{half a li", b"\xff\xfe\x00", b"null", b"[]", b'{"previous": 1}'])
def test_a_line_that_cannot_be_read_is_kept_aside_and_said(tmp_path: Path, cut: bytes) -> None:
    found = history(tmp_path)
    path = tmp_path / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    whole = b"".join([*lines[:-1], cut or lines[-1][:-9]])
    path.write_bytes(whole)
    entries, problems = found.read()
    assert len(attempts(entries)) == 3, "the cache knows it still"
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*")
    assert aside.read_bytes() == whole and aside.name in problems[0]
    assert any("lacks 1 line that the cache has" in problem for problem in problems)
    add(found, 4, "PASS")
    entries, problems = found.read()
    assert len(attempts(entries)) == 4 and not any("could not be read" in problem for problem in problems)


def remove(path: Path) -> None:
    path.unlink()


def take_one_out(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))


def take_the_last(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def take_the_first(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def make_it_pass(path: Path) -> None:
    path.write_text(path.read_text().replace('"verdict":"FAIL"', '"verdict":"PASS"', 1))


def empty_it(path: Path) -> None:
    path.write_bytes(b"")


EDITS = [remove, take_one_out, take_the_last, take_the_first, make_it_pass, empty_it]


@pytest.mark.parametrize("kept", ["run directory", "cache"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_what_was_done_to_one_log_is_said(tmp_path: Path, cache: Path, edit: Callable[[Path], None], kept: str) -> None:
    found = history(tmp_path)
    edit(cache if kept == "run directory" else tmp_path / FILE)
    entries, problems = found.read()
    assert problems and all("attempts" in problem for problem in problems)
    assert {attempt.started for attempt in attempts(entries)} == {f"2026-01-0{n}T00:00:00.000+00:00" for n in (1, 2, 3)}


def test_a_log_cannot_be_forged_by_adding_to_it(tmp_path: Path) -> None:
    found = history(tmp_path)
    path = tmp_path / FILE
    line = json.loads(path.read_bytes().splitlines()[-1])
    path.write_bytes(path.read_bytes() + json.dumps(line | {"verdict": "PASS", "previous": FIRST}).encode() + b"\n")
    assert any("does not follow" in problem for problem in found.read()[1])


def test_a_run_directory_that_was_moved_keeps_its_attempts(tmp_path: Path) -> None:
    history(tmp_path / "run", 2)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved, other = History(tmp_path / "moved", SUBJECT), History(tmp_path / "other", SUBJECT)
    entries, problems = moved.read()
    assert problems == [] and moved.of_this_run(entries) == entries and len(entries) == 4
    assert other.of_this_run(other.read()[0]) == [], "that somebody used a nonce elsewhere makes it no one's own"


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageFault, match="cannot be read") as caught:
        History(tmp_path, SUBJECT).read()
    assert caught.value.where == str(tmp_path / FILE)
