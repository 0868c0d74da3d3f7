"""Our own listeners are recognised however they are spelled, and nobody else's are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from urelay.engine.loops import OwnListeners, first_ephemeral_port
from urelay.net.address import parse_address


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(sockets: ExitStack, address: str, *, dual: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = sockets.enter_context(socket.socket(family))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind((address, 0))
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("bound", "dual", "dialled", "back"),
    [
        ("127.0.0.1", False, "127.0.0.1", True),
        ("127.0.0.1", False, "0.0.0.0", True),
        ("127.0.0.1", False, "127.0.0.2", False),
        ("127.0.0.1", False, "::1", False),
        ("0.0.0.0", False, "127.7.7.7", True),
        ("0.0.0.0", False, "0.0.0.0", True),
        ("0.0.0.0", False, "192.0.2.1", False),
        ("0.0.0.0", False, "::1", False),
        ("::", True, "127.0.0.1", True),
        ("::", True, "::1", True),
        ("::", True, "::", True),
        ("::", True, "2001:db8::1", False),
        ("::", False, "127.0.0.1", False),
        ("::", False, "::1", True),
        ("::1", False, "::1", True),
    ],
)
def test_a_listener_is_known_by_every_address_that_reaches_it(
    sockets: ExitStack, bound: str, dual: bool, dialled: str, back: bool
) -> None:
    sock = listening(sockets, bound, dual=dual)
    port = sock.getsockname()[1]
    own = OwnListeners()
    own.add("lan", sock)
    assert own.leads_back(parse_address(dialled), port) == ("lan" if back else None)
    assert own.leads_back(parse_address(dialled), port ^ 1) is None
    own.discard("lan")
    assert own.leads_back(parse_address(dialled), port) is None


def test_unix_sockets_are_no_address(sockets: ExitStack, tmp_path: object) -> None:
    sock = sockets.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(f"{tmp_path}/s")
    own = OwnListeners()
    own.add("box", sock)
    assert own.leads_back(bytes((127, 0, 0, 1)), 0) is None


def test_the_kernel_picks_from_a_known_range() -> None:
    with socket.socket() as sock, socket.create_server(("127.0.0.1", 0)) as server:
        sock.connect(server.getsockname())
        assert sock.getsockname()[1] >= first_ephemeral_port() >= 1
