"""`urelay capture`: the commands behind `capture tcp`, and the removal of what a killed relay left."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from urelay.errors import PolicyError, StartError

if TYPE_CHECKING:
    from urelay.net.address import Prefix
    from urelay.policy.model import Listener

SUMMARY = "show the commands behind `capture tcp`, or remove what a killed relay left"
DESCRIPTION = """\
`serve` captures connections by itself where a listener says `capture tcp`, and stops when it ends. A
relay that was killed leaves routes and rules behind: no connection of that namespace gets anywhere
until it is started again, or until they are removed.

exit status: 0 done, 1 the policy has errors, 2 could not run"""
EXAMPLE = """\
example:
  urelay capture rules/lab.urr --show
  urelay capture rules/lab.urr --remove"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", metavar="FILE", help="the policy")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--show", action="store_true", help="print shell commands that do the same, and their undoing"
    )
    what.add_argument("--remove", action="store_true", help="remove what a killed relay left")


def run(arguments: argparse.Namespace) -> int:
    """Do it for every listener that captures."""
    from urelay.lang.diagnostics import Severity
    from urelay.policy.check import check_file

    checked = check_file(arguments.file)
    if checked.policy is None:
        raise PolicyError([one for one in checked.diagnostics if one.severity is Severity.ERROR])
    capturing = [one for one in checked.policy.listeners.values() if one.captures]
    if not capturing:
        raise StartError(f"no listener of {arguments.file} says `capture tcp`")
    for listener in capturing:
        if arguments.show:
            sys.stdout.write(_shown(listener))
        else:
            _remove(listener)
    return 0


def _shown(listener: Listener) -> str:
    from urelay.namespaces import script

    endpoint = listener.place.endpoint
    assert endpoint is not None, "check lets nobody capture elsewhere than at ADDR:PORT"
    own, note = _own(listener)
    parts = [
        f"# listener {listener.name} ({listener.origin})\n",
        note,
        script.install(listener.netns, endpoint, own),
        "\n# and to take it away:\n",
        script.remove(listener.netns, endpoint),
        "\n",
    ]
    return "".join(parts)


def _own(listener: Listener) -> tuple[frozenset[Prefix], str]:
    """What stays with the programs of the namespace, and what is to be said about that."""
    from urelay.namespaces.capture import addresses, own_prefixes

    try:
        return own_prefixes(addresses(listener.netns)), ""
    except (StartError, OSError) as error:
        return own_prefixes([]), f"# add the addresses of its interfaces to both lists: {error}\n"


def _remove(listener: Listener) -> None:
    from urelay.namespaces.capture import remove_leftovers

    try:
        remove_leftovers(listener.netns)
    except StartError as error:
        where = f"{listener.origin}: listener `{listener.name}`"
        raise StartError(*(f"{where}: {problem}" for problem in error.problems)) from None
