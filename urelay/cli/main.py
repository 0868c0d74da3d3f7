"""`urelay`: reads the command line and runs one command.

Each command is a file beside this one: its arguments, and one function that takes them and returns
the exit status. Importing them all is cheap, since they import what they need when they run:
`urelay --help` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING

from urelay import __version__
from urelay.cli import check, explain, serve
from urelay.errors import PolicyError, StartError, UrelayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = (check, explain, serve)

_INTERRUPTED = 130
"""What a shell reports for a program that ctrl-c ended"""
_COULD_NOT_RUN = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (the process's own arguments) asks for; returns its exit status.

    0: fine; 1: findings; 2: could not run, or the arguments make no sense.
    """
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
        # Whoever read our output has seen enough. What is still buffered must go nowhere, or the
        # interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="urelay",
        description="A TCP relay for network namespaces, ruled by a policy language.",
        epilog="`urelay COMMAND --help` tells more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"urelay {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
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
