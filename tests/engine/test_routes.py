"""What the kernel would deliver to itself is told from what it would send away."""

from __future__ import annotations

import socket

import pytest

from tests.e2e.rig import Network
from urelay.engine.routes import is_local
from urelay.net.address import parse_address


def netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("127.9.9.9", True), ("192.0.2.1", False)])
def test_here(host: str, local: bool) -> None:
    with netlink() as sock:
        assert is_local(parse_address(host), sock) is local


@pytest.mark.netns
@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9"])
def test_a_namespace_whose_every_address_is_its_own(host: str) -> None:
    with Network() as net:
        lan = net.namespace("lan")
        with lan.call(netlink) as before:
            assert not is_local(parse_address(host), before)
        lan.everything_is_local()
        # Another address on the interface changes what the kernel picks as a source, not this.
        lan.address("lo", "2001:db8:1::1/128")
        with lan.call(netlink) as after:
            assert is_local(parse_address(host), after)


@pytest.mark.netns
def test_an_address_of_an_interface_and_one_behind_it() -> None:
    with Network() as net:
        near, far = net.namespace("near"), net.namespace("far")
        net.wire(near, far, ["10.0.0.1/24", "2001:db8::1/64"], ["10.0.0.2/24", "2001:db8::2/64"])
        answers = {}
        for host in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"):
            with near.call(netlink) as sock:
                answers[host] = is_local(parse_address(host), sock)
        assert answers == {
            "10.0.0.1": True, "10.0.0.2": False, "2001:db8::1": True, "2001:db8::2": False,
        }  # fmt: skip
