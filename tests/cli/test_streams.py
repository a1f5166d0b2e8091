"""A console that cannot show a character, is closed, or has no reader does not change an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safeguard.policy.loading import load_policy, load_policy_text
from safeguard.report import writing
from tests.report import reports

CONCEPT = "d\N{LATIN SMALL LETTER A WITH ACUTE}gger \N{DAGGER KNIFE} \N{PILE OF POO}"
ENCODINGS = ["latin-1", "ascii"]


def command(*arguments: object, encoding: str, **streams: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    words = [sys.executable, "-m", "safeguard", *map(str, arguments)]
    return subprocess.run(words, env=environment, encoding="latin-1", timeout=120, check=False, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy full of characters that few consoles have, in a folder that has one, too."""
    path = tmp_path_factory.mktemp("p") / "p\N{GREEK SMALL LETTER PI}.yaml"
    done = command("policy", "init", "--concept", CONCEPT, "--out", path, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert load_policy(path).concepts[0].labels == [CONCEPT]
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_policies_are_checked_and_shown_on_any_console(policy: Path, encoding: str) -> None:
    for verb in (["show"], ["show", "--resolved"]):
        done = command("policy", *verb, policy, encoding=encoding)
        assert done.returncode == 0 and done.stdout and not done.stderr, (verb, done.stderr)
    if encoding == "latin-1":
        assert load_policy_text(done.stdout) == load_policy(policy)
    assert json.loads(command("policy", "schema", encoding=encoding).stdout)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_errors_keep_their_code_on_any_console(policy: Path, encoding: str, tmp_path: Path) -> None:
    wrong = tmp_path / "\N{SNOWMAN}.yaml"
    wrong.write_text(policy.read_text(encoding="utf-8").replace("kind: object", f"kind: {CONCEPT}"), encoding="utf-8")
    for words in (["policy", "show", wrong], [CONCEPT], ["list", CONCEPT]):
        done = command(*words, encoding=encoding)
        assert done.returncode == 2 and "internal" not in done.stderr and "error" in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_report_that_is_printed_stays_json(tmp_path: Path, encoding: str) -> None:
    run = tmp_path
    writing.write_all(reports.bare(), run)
    done = command("report", run, "--format", "json", encoding=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout if encoding == "latin-1" else done.stdout.encode("latin-1").decode("utf-8")
    assert json.loads(text) == json.loads((run / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_changes_no_code(policy: Path, closed: str) -> None:
    number = {"stdout": 1, "stderr": 2}[closed]
    for words, code in ((f"policy show '{policy}'", 0), ("list -v", 0), ("policy show /no/such/file", 2)):
        done = subprocess.run(
            f"{sys.executable} -m safeguard {words} {number}>&-",
            shell=True,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr


SAYING = """
import sys
from safeguard.cli.streams import prepare, unheard
from safeguard.progress import PlainProgress
prepare()
PlainProgress().note("\\N{PILE OF POO}" * 100)
with unheard():
    print("\\N{GREATER-THAN OR EQUAL TO}" * 200_000)
sys.exit(3)
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_hears_leaves_the_verdict_its_code(stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: writer}
    done = subprocess.run([sys.executable, "-c", SAYING], timeout=60, check=False, **streams)  # type: ignore[call-overload]
    os.close(writer)
    assert done.returncode == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output_leaves_the_verdict_its_code() -> None:
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", SAYING], stdout=full, timeout=60, check=False).returncode == 3


def test_escapes_are_those_of_json() -> None:
    text = json.dumps({CONCEPT: "\N{PILE OF POO}\xe9"}, ensure_ascii=False)
    code = f"from safeguard.cli.streams import prepare; prepare(); print({text!a})"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == json.loads(text)
