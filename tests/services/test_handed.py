"""Descriptors count only if they were handed to this very process; what nobody asked for is closed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from tests.mutations import COUNT, mutations
from tests.services.test_listeners import fd, listener
from urelay.errors import StartError
from urelay.policy.model import ListenerKind, Place, PlaceKind
from urelay.services import handed
from urelay.services.handed import HandedOver
from urelay.services.listeners import Opener


def systemd(name: str) -> Place:
    """`systemd "NAME"`."""
    return Place(PlaceKind.SYSTEMD, text=name)


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """The addresses of three listening sockets, numbered one after the other from 400 on."""
    monkeypatch.setattr(handed, "_FIRST", 400)
    found = []
    for number in (400, 401, 402):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            os.dup2(sock.fileno(), number)
            found.append(sock.getsockname())
    yield found
    for number in (400, 401, 402):
        with contextlib.suppress(OSError):
            os.close(number)


def environ(count: int, names: str | None, pid: int | None = None) -> dict[str, str]:
    """What systemd puts into the environment."""
    found = {"LISTEN_PID": str(os.getpid() if pid is None else pid), "LISTEN_FDS": str(count), "OTHER": "x"}
    return found if names is None else {**found, "LISTEN_FDNAMES": names}


def unused(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The names that were handed over in vain, as warnings tell them."""
    return [record.getMessage().split("`")[1] for record in caplog.records]


def test_a_socket_by_its_name(addresses: list[tuple[str, int]], caplog: pytest.LogCaptureFixture) -> None:
    variables = environ(3, "web:relay:dns")
    opener = Opener(variables, [400, 401, 402])
    [opened] = opener.open([listener(systemd("relay"))])
    with opened.sock:
        assert opened.sock.getsockname() == addresses[1]
        assert not opened.sock.get_inheritable()
    assert variables == {"OTHER": "x"}, "a program we start must not believe it is meant"
    opener.close_others()
    assert unused(caplog) == ["web", "dns"]


def test_a_name_that_stands_for_several_sockets_gets_them_all_and_keeps_them(
    addresses: list[tuple[str, int]],
) -> None:
    opener = Opener(environ(3, "relay:relay:other"), [400, 401, 402])
    lan = listener(systemd("relay"))
    opened = opener.open([lan])
    assert [one.sock.getsockname() for one in opened] == addresses[:2]
    again = opener.open([lan], {one.key: one.sock for one in opened})
    assert [one.sock.getsockname() for one in again] == addresses[:2]
    for one in (*opened, *again):
        one.sock.close()


def test_without_names_they_are_called_unknown() -> None:
    opened = Opener(environ(2, None), [400, 401]).open([listener(systemd("unknown"))])
    assert len(opened) == 2
    for one in opened:
        one.sock.close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        pytest.param(
            environ(2, "web:dns"), "handed over no socket called `relay`; there is `web`, `dns`", id="name"
        ),
        pytest.param(environ(1, "relay", pid=1), "are meant for process 1, this is", id="process"),
        pytest.param({}, "systemd handed over no sockets", id="none"),
        pytest.param({"LISTEN_FDS": "1"}, "systemd handed over no sockets", id="no process"),
        pytest.param(environ(1, "r\x1b[31m"), "there is `r\\x1b[31m`", id="hostile name"),
        pytest.param({**environ(1, "relay"), "LISTEN_FDS": "-1"}, "no sockets", id="count"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(variables: dict[str, str], message: str) -> None:
    with pytest.raises(StartError) as caught:
        Opener(dict(variables), [400, 401, 402]).open([listener(systemd("relay"))])
    assert message in str(caught.value)


def test_a_number_that_was_not_open_is_no_socket() -> None:
    with pytest.raises(StartError, match="descriptor 400 was not handed"):
        Opener(environ(1, "relay"), []).open([listener(systemd("relay"))])


def test_a_unix_socket_has_no_destination_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        os.dup2(sock.fileno(), 401)
    opener = Opener(environ(3, "web:relay:dns"), [400, 401, 402])
    with pytest.raises(
        StartError, match="is a unix socket, which has no destination: `transparent` needs one"
    ):
        opener.open([listener(systemd("relay"), kind=ListenerKind.TRANSPARENT)])
    [opened] = opener.open([listener(systemd("relay"))])
    opened.sock.close()


def test_fifty_leaked_descriptors_are_closed_and_the_rest_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leaked = [os.dup(os.open("/dev/null", os.O_RDONLY)) for _ in range(25)]
    leaked += [number - 1 for number in leaked]
    with socket.create_server(("127.0.0.1", 0)) as ours:
        given = [*leaked, 0, 1, 2, 400, 401, 402]
        opener = Opener(environ(2, "web:relay"), given)
        [one, two] = opener.open([listener(systemd("relay")), listener(fd(402), "numbered")])
        opener.close_others()
        assert unused(caplog) == ["web"]
        gone = [number for number in [*leaked, 401, 402] if not os.path.exists(f"/proc/self/fd/{number}")]
        assert gone == [*leaked, 401, 402]
        assert ours.getsockname(), "a descriptor of our own was closed"
        for number in (0, 1, 2, 400):
            os.fstat(number)
        assert not os.get_inheritable(400)
        # A later policy may name what systemd gave, and nothing else.
        [later] = opener.open([listener(systemd("web"), "later")])
        with pytest.raises(StartError, match="was not handed to this process"):
            opener.open([listener(fd(leaked[0]))])
        for opened in (one, two, later):
            opened.sock.close()


def test_mutated_variables_hand_over_what_was_handed_or_nothing() -> None:
    """S11: 100,000 seeded mutations of systemd's three variables and of a descriptor's own."""
    seeds = [f"{os.getpid()};3;web:relay:dns;401".encode(), f"{os.getpid()};2;;400".encode()]
    handed_over = numbered = 0
    for number, data in mutations(seeds, b";", b":", b"relay", b"-", "٣".encode()):
        values = data.decode("utf-8", "surrogateescape").split(";")
        names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "OWN")
        held = HandedOver(dict(zip(names, values, strict=False)), (400, 401, 402))
        with contextlib.suppress(StartError):
            found = held.from_systemd("relay" if number & 1 else "unknown")
            assert found
            assert {400, 401, 402}.issuperset(found)
            assert values[0] == str(os.getpid())
            handed_over += 1
        with contextlib.suppress(StartError):
            assert held.in_variable("OWN") == int(values[3])
            numbered += 1
    assert handed_over > COUNT / 100
    assert numbered > COUNT / 100
