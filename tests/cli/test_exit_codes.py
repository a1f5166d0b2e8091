"""Every way a command can end has its exit code, and a message instead of a traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from safeguard import cli, errors

QUICKSTART = Path(__file__).parents[2] / "policies" / "quickstart.yaml"
SAFEGUARD = [sys.executable, "-m", "safeguard"]


def safeguard(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SAFEGUARD, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Commands:"),
        (("hardn",), 2, "did you mean 'harden'?"),
        (("--nope",), 2, "No such option"),
        (("harden",), 2, "Missing argument 'POLICY'"),
        (("harden", "policy.yaml"), 2, "Missing option '--out'"),
        (("certify", "model", "--progress", "loud"), 2, "'loud' is not one of"),
        (("certify", "model", "--workers", "0"), 2, "'--workers': 0 is not in the range"),
        (("list", "poems"), 2, "'poems' is not one of"),
        (("report", "/no/such/run"), 2, "there is no report.json here"),
        (
            ("harden", str(QUICKSTART), "--out", "/no/such/model", "--device", "cpu", "--cuda-graphs"),
            2,
            "leave --cuda-graphs out",
        ),
    ],
)
def test_usage_errors_end_in_2_with_one_message(arguments: Sequence[str], code: int, message: str):
    done = safeguard(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback_wherever_it_stands():
    for arguments in (("--debug", "report", "/no/such/run"), ("report", "/no/such/run", "--debug")):
        done = safeguard(*arguments)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.rstrip().splitlines()[-2].startswith("error: /no/such/run: there is no report.json")


def test_list_and_help_end_in_0():
    assert safeguard("list", "unlearners").stdout.split()[0] == "esd"
    assert "hypergradient" not in safeguard("--help").stdout
    for verb in ("harden", "certify", "probe", "list", "doctor"):
        done = safeguard(verb, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert cli.VERBS[verb][1] in " ".join(done.stdout.split())


class TorchLikeError(RuntimeError):
    """What the CPU allocator of torch raises."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UsageFault("no such thing", fix="name another"), 2, "error: no such thing\n  → name another\n"),
        (errors.PolicyFault("bad field", where="p.yaml:3"), 2, "error: p.yaml:3: bad field\n"),
        (errors.ModelFault("pickle refused"), 2, "error: pickle refused\n"),
        (errors.EnvironmentFault("no device"), 4, "error: no device\n"),
        (errors.TrainingFault("weights are NaN"), 4, "error: weights are NaN\n"),
        (errors.PolicyFault("name \x1b[2J\u202eevil\x07"), 2, "error: name [2Jevil\n"),
        (click.ClickException("cannot read"), 4, "internal error: ClickException: cannot read"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again, finished work is kept\n"),
        (click.Abort(), 130, "interrupted; run the same command again, finished work is kept\n"),
        (MemoryError(), 4, "error: out of memory"),
        (TorchLikeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), 4, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "error: the disk is full"),
        (OSError(errno.EIO, "input/output error"), 4, "internal error: OSError: [Errno 5] input/output error"),
        (
            ValueError("first line\nsecond line"),
            4,
            "internal error: ValueError: first line\n  → run it again with --debug",
        ),
        (RuntimeError(), 4, "internal error: RuntimeError: \n"),
    ],
)
def test_what_a_verb_raises_becomes_a_code_and_a_message(monkeypatch, capsys, error, code, message):
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: fails)
    assert cli.run(["doctor"]) == code
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.out == ""


def test_out_of_memory_on_an_accelerator_is_recognised():
    import torch

    assert cli.explain(torch.OutOfMemoryError("CUDA out of memory"))[1].startswith("error: out of memory")


@pytest.mark.parametrize(("leave", "code"), [(0, 0), (1, 1), (3, 3), ("a message", 4)])
def test_codes_a_verb_chooses_are_kept(monkeypatch, leave, code):
    @click.command()
    @click.pass_context
    def verdict(context: click.Context) -> None:
        if isinstance(leave, int):
            context.exit(leave)
        raise SystemExit(leave)

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: verdict)
    assert cli.run(["certify"]) == code


def test_a_reader_that_goes_away_is_not_a_fail():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run([*SAFEGUARD, "list"], stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 4
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_130(tmp_path, number):
    """A plug-in found through entry points blocks ``list`` while the signal arrives."""
    package = tmp_path / "slow-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    os.mkfifo(package / "entry_points.txt")
    search = os.pathsep.join([str(tmp_path), os.getcwd()])
    # A shell's background job ignores Ctrl-C, and so would our child, were these tests run in one.
    process = subprocess.Popen(
        [*SAFEGUARD, "list"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": search},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Opening the pipe to write succeeds only once the command reads it: then it runs our code for sure.
    with (package / "entry_points.txt").open("w"):
        time.sleep(0.2)
        process.send_signal(number)
        _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert message == "interrupted; run the same command again, finished work is kept\n"


def test_doctor_names_what_is_missing(monkeypatch, capsys):
    from safeguard.cli import doctor

    monkeypatch.setattr(doctor, "PACKAGES", ("pydantic", "no-such-package"))
    assert cli.run(["doctor"]) == 4
    output = capsys.readouterr()
    assert ["no-such-package", "PROBLEM", "not", "installed"] in [line.split() for line in output.out.splitlines()]
    assert "no-such-package" in output.err
    assert "pydantic,".strip(",") in output.out


def test_importing_a_verb_that_another_package_breaks_is_an_error_not_a_fail(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "doctor", ("safeguard.cli.no_such_module:doctor", "x"))
    assert cli.run(["doctor"]) == 4
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_probe_rates_are_counted_per_subject_and_effort():
    from safeguard.cli.probe import rates
    from safeguard.results.unit import Checkpoint, ImageRow, UnitResult

    flags = {("weapons", 0): [False] * 4, ("weapons", 10): [True, False, False, True], ("tools", 0): [True]}
    result = UnitResult(
        address="a",
        facts={},
        probe="benign",
        attack="ask",
        axis="queries",
        efforts=[0, 10],
        role="hardened",
        seed=0,
        nonce="00",
        settings={},
        model_digest="m",
        data_digests=[],
        detectors={},
        thresholds={},
        metrics={},
        checkpoints=[Checkpoint(effort=effort, loss=None, seconds=0) for effort in (0, 10)],
        rows=[
            ImageRow(subject=subject, effort=effort, prompt="p", seed=0, image="", score=0, flagged=flag)
            for (subject, effort), found in flags.items()
            for flag in found
        ],
        image_statistics={},
        seconds=0,
        cpu_seconds=0,
        environment={},
    )
    table = rates(result).splitlines()
    assert table[0].split() == ["subject", "queries", "flagged", "rate"]
    assert [line.split() for line in table[2:]] == [
        ["weapons", "0", "0/4", "0.00"],
        ["weapons", "10", "2/4", "0.50"],
        ["tools", "0", "1/1", "1.00"],
    ]
    assert json.loads(result.model_dump_json())["probe"] == "benign"
