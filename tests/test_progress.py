"""Progress reporters: what they print, when, and where."""

import io
import sys

import pytest

from safeguard.errors import UsageFault
from safeguard.progress import PlainProgress, Progress, RichProgress, SilentProgress, choose, duration, printable


class Clock:
    """A clock the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(stream, interval=10, clock=clock), stream, clock


def test_plain_lines_are_first_last_and_one_per_interval():
    progress, stream, clock = plain()
    with progress.task("erase", total=100) as task:
        for step in range(1, 101):
            clock.now += 0.25
            task.update(step, loss=step / 7)
    assert stream.getvalue().splitlines() == [
        "erase 0/100",
        "erase 40/100 · loss 5.714 · about 15 s left",
        "erase 80/100 · loss 11.43 · about 5 s left",
        "erase 100/100 · loss 14.29 · done after 25 s",
    ]


def test_plain_says_where_an_interrupted_task_stopped():
    progress, stream, clock = plain()
    with pytest.raises(KeyboardInterrupt), progress.task("attack", total=9) as task:
        clock.now = 3
        task.update(2, verdict="none yet")
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1] == "attack 2/9 · verdict none yet · stopped after 3 s"


def test_plain_waits_for_the_first_item_before_it_guesses_the_time_left():
    progress, stream, clock = plain()
    with progress.task("attack", total=9) as task:
        clock.now = 30
        task.update(0)
    assert "left" not in stream.getvalue()


@pytest.mark.parametrize("make", [PlainProgress, RichProgress])
def test_markup_and_control_characters_are_shown_as_text_or_dropped(make):
    stream = io.StringIO()
    progress: Progress = make(stream)
    progress.note("[bold]prompt[/bold] \x1b[2J[end]")
    assert stream.getvalue() == "[bold]prompt[/bold] [2J[end]\n"


def test_rich_leaves_one_line_per_outermost_task():
    stream = io.StringIO()
    progress = RichProgress(stream)
    with progress.task("outer [x]", total=2) as outer:
        with progress.task("inner", total=1) as inner:
            inner.update(1, loss=0.5)
        outer.update(2)
    with progress.task("again", total=1) as task:
        task.update(1)
    lines = stream.getvalue().splitlines()
    assert [line.partition(" · ")[0] for line in lines if " · done after" in line] == ["outer [x]", "again"]


def test_silence_is_silent(capsys):
    progress = SilentProgress()
    with progress.task("erase", total=2) as task:
        task.update(1, loss=0.1)
    progress.note("a note")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(capsys):
    choose("plain").note("a note")
    assert capsys.readouterr() == ("", "a note\n")


@pytest.mark.parametrize(
    ("mode", "terminal", "variables", "expected"),
    [
        ("auto", True, {}, RichProgress),
        ("auto", True, {"CI": "true"}, PlainProgress),
        ("auto", True, {"TERM": "dumb"}, PlainProgress),
        ("auto", False, {}, PlainProgress),
        ("rich", False, {}, RichProgress),
        ("plain", True, {}, PlainProgress),
        ("none", True, {}, SilentProgress),
    ],
)
def test_choose(monkeypatch, mode, terminal, variables, expected):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(choose(mode)) is expected


def test_choose_refuses_an_unknown_mode():
    with pytest.raises(UsageFault, match="loud"):
        choose("loud")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (86399.9, "24 h 00 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_printable_keeps_letters_and_newlines_only():
    assert printable("é…\n\x1b[31m\u202e\x07\x9b\ttext") == "é…\n[31mtext"
