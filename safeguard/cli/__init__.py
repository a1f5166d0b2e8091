"""The command line: one file per verb, loaded when that verb runs, and one place that turns errors into exit codes.

``0`` PASS or done · ``1`` FAIL · ``2`` usage, invalid policy, rejected model · ``3`` INCONCLUSIVE · ``4`` error ·
``130`` interrupted. A crash must never look like a verdict, so nothing here falls through to Python's own exit code 1.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from safeguard import __version__
from safeguard.cli.streams import discard, prepare
from safeguard.errors import SafeguardError, UsageFault
from safeguard.progress import printable

VERBS: dict[str, tuple[str, str]] = {
    "harden": ("safeguard.cli.harden:harden", "Erase a policy's concepts from a model so that they stay gone."),
    "certify": ("safeguard.cli.certify:certify", "Attack a model and say whether it meets its policy."),
    "probe": ("safeguard.cli.probe:probe", "Run one probe of a suite and show the rates."),
    "calibrate": ("safeguard.cli.calibrate:calibrate", "Measure a detector's errors on images of one's own."),
    "report": ("safeguard.cli.report:report", "Render the report of a finished certification again."),
    "verify": ("safeguard.cli.verify:verify", "Compute a finished certification again, and name what differs."),
    "study": ("safeguard.cli.study:study", "Compare many policies, hardened and certified."),
    "policy": ("safeguard.cli.policy:policy", "Write, check and explain policy files."),
    "list": ("safeguard.cli.list:list_methods", "List the methods a policy or a suite can name."),
    "doctor": ("safeguard.cli.doctor:doctor", "Check that this machine can run safeguard."),
}
"""Verb → where its click command lives, and what the help says of it."""


class LazyGroup(click.Group):
    """A group whose help and errors are written without importing any of its commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not args[0].startswith("-"):
            from safeguard.registry import suggest

            raise UsageFault(f"unknown command {args[0]!r}", fix=suggest(args[0], list(VERBS)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 pass or done, 1 fail, 2 usage or rejected input, 3 inconclusive, 4 error, 130 interrupted.",
)
@click.version_option(__version__, prog_name="safeguard")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; goes anywhere.")
def cli() -> None:
    """Harden open-weights text-to-image models against relearning, and certify that it holds."""


def main() -> None:
    """Entry point of the ``safeguard`` command."""
    # A cancelled job gets SIGTERM; ending it like Ctrl-C lets temporary weights be deleted on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed on stderr, never raised."""
    debug = "--debug" in arguments
    prepare()
    try:
        with cli.make_context("safeguard", [word for word in arguments if word != "--debug"]) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else 4
    except BaseException as error:
        code, message = explain(error)
        if debug:
            traceback.print_exception(error)
        _say(message)
        return code
    return 0


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what to tell the user."""
    if isinstance(error, SafeguardError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return 2, error.format_message()
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "safeguard"
        return 2, f"error: {error.format_message()}\n  → {command} --help"
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return 130, "interrupted; run the same command again, finished work is kept"
    if _is_out_of_memory(error):
        return (
            4,
            "error: out of memory\n  → close other programs or take another --device, then run the same command again",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return 4, "error: the disk is full\n  → free some space and run the same command again"
    if isinstance(error, BrokenPipeError):
        discard(sys.stdout)
        return 4, "error: the reader of the output went away before its end"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return (
        4,
        f"internal error: {type(error).__name__}: {first_line}\n  → run it again with --debug and report what it shows",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    # The CPU allocator of torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _say(message: str) -> None:
    print(printable(message), file=sys.stderr)
