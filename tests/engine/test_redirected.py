"""A redirected client's destination is the one before NAT; who was not redirected is never dialled for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.rig import Namespace, Network
from urelay.engine.redirected import original_destination
from urelay.net.address import parse_endpoint

pytestmark = [pytest.mark.netns, pytest.mark.peer("nft")]

REDIRECT = """
table inet nat {
    chain output { type nat hook output priority -100;
        ip daddr 203.0.113.0/24 tcp dport 1-65535 redirect to :%d
        ip6 daddr 2001:db8:9::/64 tcp dport 1-65535 redirect to :%d
    }
}
"""


@pytest.fixture
def box() -> Iterator[Namespace]:
    """A namespace where two prefixes have a local route, so that connecting to them is tried at all."""
    with Network() as net:
        box = net.namespace("box")
        box.ip("route", "add", "203.0.113.0/24", "dev", "lo")
        box.ip("-6", "route", "add", "2001:db8:9::/64", "dev", "lo")
        yield box


def accepted(box: Namespace, listener: socket.socket, host: str, port: int) -> str | None:
    """What `original_destination` says of a client that connects to an endpoint."""
    with box.connect(host, port):
        client, _ = listener.accept()
        with client:
            found = original_destination(client)
            return None if found is None else str(found)


@pytest.mark.parametrize(
    ("listening", "destination"),
    [
        ("0.0.0.0", "203.0.113.7:443"),
        ("::", "203.0.113.7:443"),
        ("::", "203.0.113.8:1"),
        ("::", "[2001:db8:9::5]:65535"),
        ("::1", "[2001:db8:9::5]:80"),
    ],
)
def test_the_destination_before_nat(box: Namespace, listening: str, destination: str) -> None:
    host, _, port = destination.rpartition(":")
    with box.listen(listening) as listener:
        box.nft(REDIRECT % ((listener.getsockname()[1],) * 2))
        assert accepted(box, listener, host.strip("[]"), int(port)) == str(parse_endpoint(destination))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_of_the_listener_itself_was_not_redirected(box: Namespace, host: str) -> None:
    with box.listen("::") as listener:
        port = listener.getsockname()[1]
        box.nft(REDIRECT % (port, port))
        assert accepted(box, listener, host, port) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_nat_nobody_was_redirected(box: Namespace, host: str) -> None:
    with box.listen("::") as listener:
        assert accepted(box, listener, host, listener.getsockname()[1]) is None


def test_a_unix_socket_was_never_redirected() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert original_destination(one) is None
