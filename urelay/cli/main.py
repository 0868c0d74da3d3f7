"""`urelay`: reads the command line and runs one command.

Each command is a file beside this one: its arguments, and one function that takes them and returns
the exit status. Importing them all is cheap, since they import what they need when they run:
`urelay --help` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from urelay import __version__
from urelay.cli import capture, check, explain, import_, serve
from urelay.errors import PolicyError, StartError, UrelayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = (check, explain, serve, capture, import_)

_INTERRUPTED = 130
"""What a shell reports for a program that ctrl-c ended"""
_COULD_NOT_RUN = 2
_NO_OUTPUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""What writing to standard output fails with, beside EPIPE"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (the process's own arguments) asks for; returns its exit status.

    0: fine; 1: findings; 2: could not run, or the arguments make no sense.
    """
    _open_standard_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # What a policy, a path or a question may hold must not depend on what the locale can show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _abandon_output()
        return _COULD_NOT_RUN
    except OSError as error:
        if error.errno not in _NO_OUTPUT:
            raise
        _abandon_output()
        sys.stderr.write(
            f"urelay: error: cannot write to standard output: {os.strerror(error.errno).lower()}\n"
        )
        return _COULD_NOT_RUN
    except KeyboardInterrupt:
        return _INTERRUPTED
    except PolicyError as error:
        return _report_policy_error(error)
    except StartError as error:
        for problem in error.problems:
            sys.stderr.write(f"urelay: error: {problem}\n")
        return _COULD_NOT_RUN
    except UrelayError as error:
        sys.stderr.write(f"urelay: error: {error}\n")
        return _COULD_NOT_RUN
    return status


def _open_standard_streams() -> None:
    """Open what a caller closed (`2>&-`) on /dev/null.

    Else the next socket would get the number 2, and a client read what the relay logs.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one: those below it are open by now.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _abandon_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains when it flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="urelay",
        description="A TCP relay for network namespaces, ruled by a policy language.",
        epilog="`urelay COMMAND --help` tells more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"urelay {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].rstrip("_")
        one = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


def _report_policy_error(error: PolicyError) -> int:
    from urelay.cli.output import use_colour
    from urelay.lang.render import render_text
    from urelay.services.verdict import status

    sys.stderr.write(render_text(error.diagnostics, colour=use_colour(sys.stderr)))
    return status(error.diagnostics)
