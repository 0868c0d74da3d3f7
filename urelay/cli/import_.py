"""`urelay import`: writes a policy that does what another tool's configuration says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from urelay.net.address import Prefix

SUMMARY = "write the policy for another tool's configuration"
DESCRIPTION = """\
Reads the configuration of another relay and writes a policy that decides alike, on standard output.
What has no equivalent stands in it as a comment.

exit status: 0 written, 2 could not run"""
EXAMPLE = """\
example:
  urelay import u-relay static_maps.json > relay.urr
  urelay import socketbox socketbox.conf > box.urr && urelay check box.urr"""

_LARGEST = 64 << 20
"""Bytes of a file that is read: far more than anybody's configuration"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("what", metavar="TOOL", choices=("u-relay", "socketbox"), help="u-relay or socketbox")
    parser.add_argument("file", metavar="FILE", help="its static_maps.json, its socketbox.conf")
    parser.add_argument(
        "--prefix", metavar="PREFIX/64", help="u-relay: the prefix of its addresses, if it was told one"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, convert, write."""
    from urelay.errors import StartError
    from urelay.net.address import printable

    if arguments.prefix is not None and arguments.what != "u-relay":
        raise StartError("`--prefix` is for u-relay")
    try:
        with Path(arguments.file).open(encoding="utf-8") as file:
            text = file.read(_LARGEST)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"cannot read {printable(arguments.file)}: {reason}") from None
    except UnicodeDecodeError:
        raise StartError(f"{printable(arguments.file)} is not text") from None
    name = Path(arguments.file).name
    if arguments.what == "socketbox":
        from urelay.imports import socketbox

        sys.stdout.write(socketbox.convert(text, name))
    else:
        from urelay.imports import u_relay

        sys.stdout.write(u_relay.convert(text, name, _prefix(arguments.prefix)))
    return 0


def _prefix(text: str | None) -> Prefix:
    from urelay.errors import AddressError, StartError
    from urelay.imports.u_relay import DEFAULT_PREFIX
    from urelay.net.address import Prefix, parse_address, printable

    if text is None:
        return DEFAULT_PREFIX
    address, _, length = text.partition("/")
    try:
        first = int.from_bytes(parse_address(address))
    except AddressError as error:
        raise StartError(f"--prefix: {error}") from None
    if length != "64" or ":" not in address or first & ((1 << 64) - 1):
        raise StartError(f"--prefix: `{printable(text)}` is not an IPv6 prefix of 64 bits")
    return Prefix(6, first, 64)
