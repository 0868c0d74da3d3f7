"""What can be known at start about where upstreams leave from: their namespaces and their marks.

A namespace that is missing and a mark that may not be set would fail every dial, so `serve` tells
before anybody connects. An interface or an address may come later (a tunnel that is still to be set
up), so those are left to the dials, which tell too.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from urelay.errors import StartError
from urelay.namespaces.enter import identity, socket_inside

if TYPE_CHECKING:
    from urelay.policy.model import Policy, Upstream


def check_departures(policy: Policy) -> None:
    """Raises StartError with every upstream that could not make a single connection."""
    problems = []
    for upstream in policy.upstreams.values():
        try:
            _check(upstream)
        except StartError as error:
            problems += [f"{upstream.origin}: upstream `{upstream.name}`: {one}" for one in error.problems]
    if problems:
        raise StartError(*problems)


def _check(upstream: Upstream) -> None:
    netns, mark = upstream.netns, upstream.mark
    if netns is not None:
        identity(netns)
    if mark is None:
        return
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with socket.socket(*kind) if netns is None else socket_inside(netns, *kind) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))
        except PermissionError:
            raise StartError(f"mark {mark:#x} may not be set without CAP_NET_ADMIN") from None
