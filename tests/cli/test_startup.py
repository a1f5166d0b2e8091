"""The command line answers at once: help and version import nothing heavy, and verbs are loaded when they run."""

import resource
import subprocess
import sys
from importlib import import_module

import click
import pytest

from safeguard import __version__, cli
from safeguard.cli.list import KINDS

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "scipy",
    "matplotlib",
    "peft",
    "pydantic",
    "rich",
    "jinja2",
    "PIL",
)
LOOK = """
import sys
from safeguard.cli import run
code = run(sys.argv[1:])
print("HEAVY", [name for name in {heavy} if name in sys.modules])
print("VERBS", [name for name in sys.modules if name.startswith("safeguard.cli.") and name[14:] in {verbs}])
sys.exit(code)
"""


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument):
    command = [sys.executable, "-c", LOOK.format(heavy=HEAVY, verbs=list(cli.VERBS)), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "HEAVY []\nVERBS []\n" in done.stdout


@pytest.mark.parametrize("arguments", [["list"], ["list", "--verbose"]])
def test_list_imports_no_method(arguments):
    command = [sys.executable, "-c", LOOK.format(heavy=("torch", "diffusers"), verbs=list(cli.VERBS)), *arguments]
    assert "HEAVY []" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_method_of_every_kind_is_listed_with_what_it_is(capsys):
    assert cli.run(["list", "-v"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[2:]]
    known = [(title, name) for title, registry in KINDS.items() for name in registry.names()]
    assert [(row[0], row[1]) for row in rows] == known and all(len(row) == 3 for row in rows)
    for title, registry in KINDS.items():
        assert cli.run(["list", title]) == 0
        assert capsys.readouterr().out.split() == registry.names()


def test_help_is_quick():
    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, and the best of several runs: what the code itself costs beside other work on the machine.
    quick, bare = (min(seconds(*a) for _ in range(5)) for a in (("-m", "safeguard", "--help"), ("-c", "import click")))
    assert quick < 0.3 + bare


def test_help_lists_every_verb_and_the_exit_codes(capsys):
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (_, summary) in cli.VERBS.items():
        assert any(line.split() == [verb, *summary.split()] for line in text.splitlines())
    assert "130 interrupted" in text


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_exists_under_its_name(verb):
    module, _, attribute = cli.VERBS[verb][0].partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == verb
    assert command.help
