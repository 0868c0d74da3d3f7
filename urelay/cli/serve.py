"""`urelay serve`: relays by a policy until told to stop."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SUMMARY = "relay connections by a policy"
DESCRIPTION = """\
Checks the policy, opens every listener it names (or none) and relays until SIGTERM or SIGINT; then
clients that are connected may finish for a while, and a second signal ends at once. On SIGHUP the
policy is read again: a good one takes over for new connections, one with errors changes nothing.
SIGUSR2 says in one line what was relayed so far.

With --workers N the process that was started opens the listeners and looks after N others, which
relay; all signals go to it. A worker that dies is replaced, and no client in the queue is lost.

exit status: 0 ended when told to, 1 the policy has errors, 2 could not run"""
EXAMPLE = """\
example:
  urelay serve rules/quickstart.urr --access-log -
  curl --socks5-hostname 127.0.0.1:1080 https://example.com/"""

DRAIN_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", metavar="FILE", help="the policy")
    parser.add_argument(
        "--access-log",
        metavar="FILE",
        help="write a JSON object a line when a connection ends (- for standard output);"
        " SIGHUP and SIGUSR1 open the file again",
    )
    parser.add_argument(
        "--drain",
        metavar="SECONDS",
        type=_seconds,
        default=DRAIN_S,
        help="how long connections may take to finish after SIGTERM (default: %(default)g)",
    )
    parser.add_argument(
        "--resolver",
        metavar="ADDR[:PORT]",
        help="ask this DNS server instead of those in /etc/resolv.conf",
    )
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=_count_of("connections", 10_000_000),
        help="relay so many at a time, all workers together"
        " (default: what the limit of open descriptors carries)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_count_of("workers", 1024),
        default=1,
        help="relay in so many processes, which share the listeners (default: %(default)d)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    # First of all: what was open before us is what was handed to us.
    from urelay.services.handed import inherited_descriptors

    inherited = inherited_descriptors()

    from urelay.services.daemon import Options, serve

    return serve(
        arguments.file,
        Options(
            access_log=arguments.access_log,
            drain_s=arguments.drain,
            resolver=arguments.resolver,
            max_connections=arguments.max_connections,
            workers=arguments.workers,
            inherited=inherited,
        ),
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400 * 365:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds")
    return seconds


def _count_of(what: str, most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= most):
            raise argparse.ArgumentTypeError(f"`{text}` is not a number of {what}")
        return int(text)

    return count
