"""Programs that register for a slot are handed the clients of the routes that name it, and nobody else is."""

from __future__ import annotations

import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places import HERE
from tests.services.rig import Echo, Relay, echoes
from urelay.errors import StartError
from urelay.policy.model import Slot
from urelay.protocols.fd_passing import HAND_OVER
from urelay.services.slots import Slots

REGISTER_7 = bytes.fromhex("01 00 00 00 00 00 00 07")
GRANTED = bytes.fromhex("80 00 00 00")
DELIVERY = bytes.fromhex("03 00 00 00")


class Host:
    """Slots with a loop that turns when the test says so."""

    def __init__(self) -> None:
        self.slots = Slots()
        self._selector = selectors.DefaultSelector()
        self.slots.follow(
            lambda sock, ready: self._selector.register(sock, selectors.EVENT_READ, ready),
            self._selector.unregister,
        )

    def turn(self) -> None:
        """Everything that is ready is done."""
        while ready := self._selector.select(0):
            for key, _ in ready:
                key.data()

    def watched(self) -> int:
        return len(self._selector.get_map())

    def close(self) -> None:
        self.slots.close()
        self._selector.close()


@pytest.fixture
def host() -> Iterator[Host]:
    before = len(os.listdir("/proc/self/fd"))
    made = Host()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


class Program:
    """What socketbox-inetd-p does, byte for byte."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.sock.connect(str(path))

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def registered(host: Host, path: Path) -> Program:
    program = Program(path)
    program.sock.send(REGISTER_7)
    host.turn()
    assert program.sock.recv(100) == GRANTED
    return program


def hand_over(host: Host, box: Path, number: int) -> None:
    """One end of a pair, through whose other end `number` can be read."""
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(box))
        socket.send_fds(sender, [HAND_OVER], [left.fileno()])
        right.send(bytes((number % 256,)))
    host.turn()


def received(program: Program) -> int:
    message, found, _, _ = socket.recv_fds(program.sock, 100, 4)
    assert message == DELIVERY
    (descriptor,) = found
    with socket.socket(fileno=descriptor) as client:
        return client.recv(1)[0]


def is_let_go(program: Program) -> bool:
    try:
        return program.sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_who_is_registered_gets_clients_in_turn(host: Host, tmp_path: Path) -> None:
    slot, box = Slot(str(tmp_path / "slots"), 7), tmp_path / "slots.7"
    host.slots.apply(frozenset((slot,)))
    assert stat.S_IMODE((tmp_path / "slots").stat().st_mode) == 0o600
    assert not box.exists()
    with registered(host, tmp_path / "slots") as one:
        assert stat.S_IMODE(box.stat().st_mode) == 0o600
        hand_over(host, box, 1)
        assert received(one) == 1
        with registered(host, tmp_path / "slots") as other:
            for number in (2, 3, 4):
                hand_over(host, box, number)
            turns = [received(one), received(other), received(one)]
            assert turns == [2, 3, 4]
        host.turn()
        hand_over(host, box, 5)
        assert received(one) == 5
    host.turn()
    assert not box.exists()
    with registered(host, tmp_path / "slots") as again:
        hand_over(host, box, 6)
        assert received(again) == 6


def test_who_takes_nothing_is_passed_over(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.slots.apply(frozenset((Slot(str(tmp_path / "slots"), 7),)))
    box = tmp_path / "slots.7"
    with registered(host, tmp_path / "slots") as full, registered(host, tmp_path / "slots") as other:
        full.sock.shutdown(socket.SHUT_RD)
        for number in range(6):
            hand_over(host, box, number)
        assert [received(other) for _ in range(6)] == list(range(6))
    assert caplog.messages == []


def test_clients_that_nobody_takes_are_closed_and_told(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.slots.apply(frozenset((Slot(str(tmp_path / "slots"), 7),)))
    with registered(host, tmp_path / "slots") as lazy:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1000):
            hand_over(host, tmp_path / "slots.7", number)
            if caplog.messages:
                break
        # What is on its way to the program is no descriptor of ours any more.
        assert len(os.listdir("/proc/self/fd")) == before
        assert caplog.messages == [f"nobody takes what is for slot 7 at {tmp_path}/slots"]
        assert received(lazy) == 0


@pytest.mark.parametrize(
    "message",
    [
        REGISTER_7[:-1],
        REGISTER_7 + b"\0",
        b"\2" + REGISTER_7[1:],
        REGISTER_7[:-1] + b"\6",
        b"x" * 5000,
        b"",
    ],
    ids=["short", "long", "version", "another-slot", "much", "empty"],
)
def test_who_asks_otherwise_is_let_go(host: Host, tmp_path: Path, message: bytes) -> None:
    host.slots.apply(frozenset((Slot(str(tmp_path / "slots"), 7),)))
    idle = host.watched()
    with Program(tmp_path / "slots") as program:
        program.sock.send(message)
        host.turn()
        assert is_let_go(program)
    assert host.watched() == idle
    with registered(host, tmp_path / "slots") as program:
        program.sock.send(REGISTER_7)
        host.turn()
        assert is_let_go(program)
    assert host.watched() == idle


def test_descriptors_planted_in_a_registration_or_a_box_are_closed(host: Host, tmp_path: Path) -> None:
    """S13: whatever comes in is passed on, one for each message, or closed."""
    host.slots.apply(frozenset((Slot(str(tmp_path / "slots"), 7),)))
    left, right = socket.socketpair()
    right.settimeout(20)
    with left, right, Program(tmp_path / "slots") as program:
        socket.send_fds(program.sock, [REGISTER_7], [left.fileno()] * 3)
        host.turn()
        assert program.sock.recv(100) == GRANTED
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(tmp_path / "slots.7"))
            socket.send_fds(sender, [HAND_OVER], [left.fileno()] * 50)
            sender.send(HAND_OVER)
        host.turn()
        _, found, _, _ = socket.recv_fds(program.sock, 100, 4)
        assert len(found) == 1
        os.close(found[0])
        left.close()
        assert right.recv(1) == b""


def test_idle_programs_are_bounded(host: Host, tmp_path: Path) -> None:
    host.slots.apply(frozenset((Slot(str(tmp_path / "slots"), 7),)))
    programs = []
    for _ in range(70):
        programs.append(Program(tmp_path / "slots"))
        host.turn()
    assert host.watched() <= 65
    for program in programs:
        program.sock.close()
    host.turn()
    with registered(host, tmp_path / "slots"):
        assert host.watched() == 3


def test_slots_that_no_route_names_any_more_end(host: Host, tmp_path: Path) -> None:
    one, other = Slot(str(tmp_path / "one"), 7), Slot(str(tmp_path / "other"), 7)
    host.slots.apply(frozenset((one, other)))
    with registered(host, tmp_path / "one") as kept, registered(host, tmp_path / "other") as gone:
        host.slots.apply(frozenset((one, Slot(str(tmp_path / "one"), 8))))
        assert is_let_go(gone)
        hand_over(host, tmp_path / "one.7", 1)
        assert received(kept) == 1
        host.slots.apply(frozenset((Slot(str(tmp_path / "one"), 8),)))
        assert is_let_go(kept)
    assert os.listdir(tmp_path) == ["one"]


def test_what_cannot_be_had_leaves_everything_as_it_was(host: Host, tmp_path: Path) -> None:
    one = Slot(str(tmp_path / "one"), 7)
    host.slots.apply(frozenset((one,)))
    (tmp_path / "file").write_text("no socket")
    with registered(host, tmp_path / "one") as kept:
        with pytest.raises(StartError, match="there is a file that is no socket"):
            host.slots.apply(frozenset((Slot(str(tmp_path / "a"), 1), Slot(str(tmp_path / "file"), 1))))

        def fails(_: object) -> None:
            raise StartError("no")

        with pytest.raises(StartError, match="no"):
            host.slots.before(frozenset((one, Slot(str(tmp_path / "a"), 1))), fails)(None)
        hand_over(host, tmp_path / "one.7", 1)
        assert received(kept) == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "one", "one.7"]


# --- two relays, one of them registered with the other


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_relay_serves_a_slot_of_another(
    start: Callable[..., Relay], echo: Echo, tmp_path: Path, workers: str
) -> None:
    """Over a reload of either, and over the end of the one that has the slots."""
    taken = f'listen box = forward socketbox "slots" slot 7 to 127.0.0.1:{echo.port}\n'
    taken += f"match 127.0.0.1 port {echo.port} -> direct\n"
    given = "listen web = forward fd env URT_LISTENER to 192.0.2.1:80\n"
    given += 'match 192.0.2.1 -> to socketbox "slots" slot 7\n'
    with socket.create_server((HERE, 0)) as listening:
        number = listening.fileno()

        def giver() -> Relay:
            env = {"URT_LISTENER": str(number)}
            return start(given, "--workers", workers, env=env, pass_fds=(number,), name="give.urr")

        def is_served() -> bool:
            with socket.create_connection(listening.getsockname(), 20) as client:
                return echoes(client)

        gives = giver()
        assert is_reset(listening.getsockname())  # nobody is registered
        takes = start(taken, "--workers", workers, name="take.urr")
        assert all(is_served() for _ in range(8))
        takes.reload(taken + "# the same\n", "reloaded")
        assert all(is_served() for _ in range(8))
        gives.reload(given + "# the same\n", "reloaded")
        assert all(is_served() for _ in range(8))
        gives.process.terminate()
        assert gives.end() == 0
        assert not (tmp_path / "slots").exists()
        heard = takes.hear("lost slot 7")
        gives = giver()
        takes.hear("is registered for slot 7 again", heard)
        assert all(is_served() for _ in range(8))


def is_reset(address: tuple[str, int]) -> bool:
    """Perhaps before the client notices that it connected."""
    try:
        with socket.create_connection(address, 20) as client:
            return client.recv(1) == b""
    except ConnectionResetError:
        return True
