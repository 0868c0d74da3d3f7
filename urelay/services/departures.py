"""What can be known at start about where upstreams leave from: their namespaces and their marks.

A namespace that is missing and a mark that may not be set would fail every dial, so `serve` tells
before anybody connects. An interface or an address may come later (a tunnel that is still to be set
up), so those are left to the dials, which tell too.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from urelay.errors import StartError
from urelay.namespaces.enter import call_inside, identity

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
    code = _try_mark(mark) if netns is None else call_inside(netns, lambda: _try_mark(mark))
    if code == errno.EPERM:
        raise StartError(f"mark {mark:#x} may not be set without CAP_NET_ADMIN")


def _try_mark(mark: int) -> int:
    """The error number of marking a socket of this thread's namespace; 0 when it works."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))
        except OSError as error:
            return error.errno or errno.EIO
    return 0
