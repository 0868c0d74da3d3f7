"""Every error urelay raises on purpose, one tree.

UrelayError
├── AddressError      a text is not an address, an endpoint or a host name (ValueError)
├── PolicyError       a policy has errors; carries every diagnostic found
├── StartError        the relay could not start: a file, a descriptor, a namespace, a port (exit 2)
├── ProtocolError     a peer broke a wire protocol; carries the bytes owed to it before closing
└── DialError         the way out failed; carries why in terms every client protocol can answer
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urelay.lang.diagnostics import Diagnostic


class UrelayError(Exception):
    """The root of the tree; its text is one lower-case line for the person who must act."""


class AddressError(UrelayError, ValueError):
    """A text that is not what it should be: an address, a prefix, an endpoint or a host name."""


class PolicyError(UrelayError):
    """A policy that cannot be used. `diagnostics` holds everything found, in source order."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in self.diagnostics))


class StartError(UrelayError):
    """Something outside the policy stopped the relay from starting: says what and where.

    `problems` holds every one found, a line each, so that all can be mended in one go.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class ProtocolError(UrelayError):
    """The peer broke its protocol. Send `reply` (perhaps empty) to it, then close."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


class Failure(enum.Enum):
    """Why a connection was not made, in the terms client protocols can express."""

    DENIED = "denied"
    REFUSED = "refused"
    HOST_UNREACHABLE = "host-unreachable"
    NET_UNREACHABLE = "net-unreachable"
    TTL_EXPIRED = "ttl-expired"
    TIMEOUT = "timeout"
    NAME_NOT_FOUND = "name-not-found"
    ERROR = "error"


class Blame(enum.Enum):
    """What a failed dial says about the way that was tried, and what a group of upstreams makes of it."""

    DESTINATION = "the way works and the destination does not: no other way is tried"
    UNFIT = "this way cannot take this destination: the next is tried, and nothing is held against it"
    UNCLEAR = "no answer: the next is tried, and if that gets through this one was at fault"
    WAY = "the way itself failed: the next is tried, and this one is set aside"


class DialError(UrelayError):
    """The way out could not be opened; `failure` is what the client is told.

    `tries` is everything that was tried, in order, once a whole dial has failed.
    """

    def __init__(self, failure: Failure, message: str, blame: Blame = Blame.WAY) -> None:
        super().__init__(message)
        self.failure = failure
        self.blame = blame
        self.tries: tuple[str, ...] = ()
