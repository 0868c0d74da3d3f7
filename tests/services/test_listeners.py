"""Places become listening sockets, all or nothing, and every failure names its listener."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from urelay.errors import StartError
from urelay.lang import ast
from urelay.lang.source import Origin, Source, Span
from urelay.net.address import Endpoint, parse_address
from urelay.policy.model import Listener, ListenerKind, Place, PlaceKind, Setting
from urelay.services.handed import inherited_descriptors
from urelay.services.listeners import Opener

SPAN = Span(Source.from_text("test.urr", "listen\n"), 0, 6)
WORD = ast.Word("listen", SPAN)
NODE = ast.ListenDef(WORD, WORD, (WORD,), None, (), SPAN)


def listener(
    place: Place, name: str = "lan", kind: ListenerKind = ListenerKind.SOCKS, netns: str | None = None
) -> Listener:
    """A listener at a place, as a policy would name it."""
    origin = Origin("test.urr", 1, f"listen {name}")
    options = {} if netns is None else {"netns": Setting(netns, origin)}
    return Listener(name, kind, place, None, (), options, origin, NODE)


def at(host: str, port: int) -> Place:
    """`HOST:PORT`."""
    return Place(PlaceKind.ADDRESS, Endpoint(parse_address(host), port))


def fd(number: int) -> Place:
    """`fd N`."""
    return Place(PlaceKind.FD, fd=number)


def env(variable: str) -> Place:
    """`fd env NAME`."""
    return Place(PlaceKind.FD_ENV, text=variable)


def free_port() -> int:
    """A port of every address that nothing listens on."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        return int(server.getsockname()[1])


def reaches(host: str, port: int) -> bool:
    """Whether a client gets in."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        return client.connect_ex((host, port)) == 0


def same_socket(one: socket.socket, other: socket.socket) -> bool:
    """Whether two descriptors are of one socket."""
    return os.path.sameopenfile(one.fileno(), other.fileno())


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Nothing is left open, whatever happens."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def given() -> Iterator[socket.socket]:
    """A listening socket as somebody may hand it to us."""
    sock = socket.create_server(("127.0.0.1", 0))
    number, inode = sock.fileno(), os.fstat(sock.fileno()).st_ino
    yield sock
    # Where it became the opener's its number may be somebody else's by now.
    sock.detach()
    with contextlib.suppress(OSError):
        if os.fstat(number).st_ino == inode:
            os.close(number)


@pytest.mark.usefixtures("descriptors")
def test_a_socket_listens_without_blocking_or_leaking_to_children() -> None:
    port = free_port()
    [opened] = Opener({}, ()).open([listener(at("127.0.0.1", port))])
    with opened.sock as sock:
        assert sock.getsockname() == ("127.0.0.1", port)
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert reaches("127.0.0.1", port)


@pytest.mark.usefixtures("descriptors")
def test_the_ipv6_wildcard_takes_ipv4_too() -> None:
    port = free_port()
    [opened] = Opener({}, ()).open([listener(at("::", port))])
    with opened.sock:
        assert reaches("127.0.0.1", port)
        assert reaches("::1", port)


@pytest.mark.usefixtures("descriptors")
def test_every_failure_is_told_and_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    good, busy = free_port(), socket.create_server(("127.0.0.1", 0))
    with busy:
        port = busy.getsockname()[1]
        wanted = [
            listener(at("127.0.0.1", good), "good"),
            listener(at("127.0.0.1", port), "busy"),
            listener(at("192.0.2.1", 1080), "away"),
            listener(at("127.0.0.1", 1080), "lan", netns="far"),
            listener(env("URELAY_TEST_FD"), "unset"),
        ]
        with pytest.raises(StartError) as caught:
            Opener({}, ()).open(wanted)
    assert caught.value.problems == (
        f"test.urr:1: listener `busy`: cannot listen on 127.0.0.1:{port}: the port is in use",
        "test.urr:1: listener `away`: cannot listen on 192.0.2.1:1080: no interface there has this address",
        "test.urr:1: listener `lan`: there is no network namespace called `far` (/run/netns/far is missing)",
        "test.urr:1: listener `unset`: the environment variable `URELAY_TEST_FD` is not set",
    )
    assert not reaches("127.0.0.1", good)


@pytest.mark.usefixtures("descriptors")
def test_an_inherited_socket_becomes_ours(given: socket.socket) -> None:
    number = given.fileno()
    opener = Opener({"GIVEN": str(number)}, [number])
    [opened] = opener.open([listener(env("GIVEN"))])
    with opened.sock as sock:
        with pytest.raises(OSError):
            os.fstat(number)
        assert not sock.get_inheritable()
        assert not sock.getblocking()
        assert reaches(*sock.getsockname())
        with pytest.raises(StartError, match="was not handed to this process"):
            opener.open([listener(fd(number))])


@pytest.mark.usefixtures("descriptors")
def test_a_start_that_fails_leaves_an_inherited_socket_for_the_next(given: socket.socket) -> None:
    opener = Opener({}, [given.fileno()])
    with pytest.raises(StartError):
        opener.open([listener(fd(given.fileno())), listener(at("192.0.2.1", 1), "away")])
    [opened] = opener.open([listener(fd(given.fileno()))])
    opened.sock.close()


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-1", "is `-1`, which is no descriptor"),
        ("", "is ``, which is no descriptor"),
        ("3x", "is `3x`, which is no descriptor"),
        ("٣", "is `\\u0663`, which is no descriptor"),
        ("2", "descriptor 2 was not handed to this process"),
        ("99999", "descriptor 99999 was not handed to this process"),
    ],
)
def test_junk_in_the_variable_is_refused(text: str, message: str) -> None:
    with pytest.raises(StartError) as caught:
        Opener({"GIVEN": text}, inherited_descriptors()).open([listener(env("GIVEN"))])
    assert message in str(caught.value)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: os.open("/dev/null", os.O_RDONLY), "is not a socket", id="file"),
        pytest.param(
            lambda: socket.socket(type=socket.SOCK_DGRAM).detach(), "is not a TCP socket", id="datagram"
        ),
        pytest.param(lambda: socket.socket(socket.AF_UNIX).detach(), "does not listen", id="unix"),
        pytest.param(lambda: socket.socket().detach(), "is a socket that does not listen", id="idle"),
    ],
)
def test_a_descriptor_that_is_no_listener_is_refused(make, message: str) -> None:
    number = make()
    try:
        with pytest.raises(StartError, match=message):
            Opener({}, [number]).open([listener(fd(number))])
    finally:
        os.close(number)


@pytest.mark.usefixtures("descriptors")
def test_two_listeners_cannot_have_one_descriptor(given: socket.socket) -> None:
    number = given.fileno()
    with pytest.raises(StartError, match=f"`b`: descriptor {number} belongs to another listener"):
        Opener({"GIVEN": str(number)}, [number]).open(
            [listener(fd(number), "a"), listener(env("GIVEN"), "b")]
        )


@pytest.mark.usefixtures("descriptors")
def test_a_held_socket_is_used_again_whatever_its_listener_is_called_now() -> None:
    opener = Opener({}, ())
    place, other = at("127.0.0.1", free_port()), at("127.0.0.1", free_port())
    [before] = opener.open([listener(place, "old")])
    held = {before.key: before.sock}
    kept, fresh = opener.open(
        [listener(place, "new", ListenerKind.TRANSPARENT), listener(other, "more")], held
    )
    assert same_socket(kept.sock, before.sock)
    assert not same_socket(fresh.sock, before.sock)
    kept.sock.close()
    fresh.sock.close()
    with pytest.raises(StartError):
        opener.open([listener(place), listener(other), listener(at("192.0.2.1", 1), "away")], held)
    assert reaches(*before.sock.getsockname()), "a failed reload closed a socket in use"
    with pytest.raises(StartError, match="the port is in use"):
        opener.open([listener(place, "first"), listener(place, "second")], held)
    before.sock.close()


@pytest.mark.netns
@pytest.mark.usefixtures("descriptors")
def test_a_listener_in_a_namespace_listens_there_only() -> None:
    name = f"urt-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    port = free_port()
    place = at("127.0.0.1", port)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        opener = Opener({}, ())
        inside, here = opener.open(
            [listener(place, "lan", ListenerKind.TRANSPARENT, name), listener(place, "here")]
        )
        with inside.sock, here.sock:
            assert inside.sock.getsockname() == here.sock.getsockname() == ("127.0.0.1", port)
            assert inside.sock.getsockopt(socket.IPPROTO_IP, 19) == 1, "TPROXY needs IP_TRANSPARENT"
            busy = listener(place, "again", netns=name)
            with pytest.raises(StartError, match=f"in the network namespace `{name}`: the port is in use"):
                opener.open([busy])
            [again] = opener.open([busy], {inside.key: inside.sock})
            assert same_socket(again.sock, inside.sock)
            again.sock.close()
            # The name is given to another namespace: the same words now mean another place.
            subprocess.run(["ip", "netns", "del", name], check=True)
            subprocess.run(["ip", "netns", "add", name], check=True)
            [moved] = opener.open([busy], {inside.key: inside.sock})
            assert not same_socket(moved.sock, inside.sock)
            moved.sock.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_what_this_process_was_started_with_is_known(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        found = inherited_descriptors()
        assert file.fileno() in found
    assert file.closed
    assert all(number in found for number in (0, 1, 2))
