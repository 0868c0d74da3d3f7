"""A relay of real listeners: who is let through, what the others see, what is recorded, what is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests import strategies as by_hand
from tests.engine.rig import (
    MIB,
    PATIENCE_S,
    LoopThread,
    in_thread,
    no_descriptor_left,
    pattern,
    read_all,
    read_until_reset,
    reset,
)
from urelay.engine.connect import Timeouts
from urelay.engine.connection import Connection
from urelay.engine.dial import Asked, Denied, Dialed, Dialer
from urelay.engine.limits import Limits
from urelay.engine.pump import Direction
from urelay.engine.record import End, Record
from urelay.engine.relay import Relay
from urelay.engine.resolve import Resolver
from urelay.engine.stats import Stats
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint
from urelay.policy.model import (
    Action,
    Deliver,
    Deny,
    DenyHow,
    Direct,
    ListenerKind,
    Outcome,
    PortRange,
    Rewrite,
    Silent,
    ToName,
    ToPrefix,
    Unix,
)
from urelay.protocols.users import SaltedHash, Users
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

LOOPBACK = bytes((127, 0, 0, 1))
CONNECT = b"\5\1\0\1"


def table(*deliveries: tuple[str, Deliver | Action]) -> Table:
    """Routes by destination (`any`, a prefix, or a name)."""
    routes = [
        by_hand.route(by_hand.region(where, name=where[-1].isalpha() and where != "any"), action, line)
        for line, (where, action) in enumerate(deliveries, 1)
    ]
    return compile_policy(by_hand.policy(routes, guard=by_hand.GUARD))


OPEN = (("any", Direct()), ("127.0.0.0/8", Direct()))


class World:
    """A relay in a thread, and peers in the test."""

    def __init__(self, limits: Limits, routes: Table, dialer: Dialer) -> None:
        self.thread = LoopThread()
        self.records: list[Record] = []
        self._news = threading.Condition()
        self.relay: Relay = self.thread.call(lambda: Relay(routes, dialer, self._note, limits))
        self._listening = contextlib.ExitStack()

    def _note(self, record: Record) -> None:
        with self._news:
            self.records.append(record)
            self._news.notify_all()

    def record(self, number: int = 1) -> Record:
        """The record with this place in the order of endings."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.records) >= number, PATIENCE_S), "no record"
            return self.records[number - 1]

    def listen(
        self,
        kind: ListenerKind,
        *,
        name: str = "",
        to: Endpoint | None = None,
        users: Users | None = None,
        **options: object,
    ) -> tuple[str, int]:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener = replace(by_hand.listener(name or kind.value, kind=kind, **options), to=to)
        address: tuple[str, int] = sock.getsockname()
        try:
            self.thread.call(lambda: self.relay.add_listener(listener, sock, users))
        except ValueError:
            sock.close()
            raise
        return address

    def server(self) -> socket.socket:
        server = self._listening.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        server.settimeout(PATIENCE_S)
        return server

    def bound(self) -> socket.socket:
        """A socket that has a port and does not listen."""
        sock = self._listening.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        return sock

    def connect(self, address: tuple[str, int]) -> socket.socket:
        return self._listening.enter_context(socket.create_connection(address, PATIENCE_S))

    def is_reset(self, address: tuple[str, int]) -> bool:
        """Whether a client is reset without a byte, perhaps before it notices that it connected."""
        try:
            return read_until_reset(self.connect(address)) == b""
        except ConnectionResetError:
            return True

    def accepted(self, server: socket.socket) -> socket.socket:
        sock, _ = server.accept()
        sock.settimeout(PATIENCE_S)
        return self._listening.enter_context(sock)

    def stats(self) -> Stats:
        return self.thread.call(self.relay.snapshot)

    def close(self) -> None:
        self._listening.close()
        self.thread.call(self.relay.close)
        self.thread.run(_settled())
        assert self.stats().active == 0
        assert self.relay.pump.pipes.open == 0
        self.thread.close()


async def _settled() -> None:
    """Return when every other task of the loop is done."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=PATIENCE_S)


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    """Make a relay: `world(*routes, limits…)`."""
    made: list[World] = []

    def make(*routes: tuple[str, Deliver | Action], dialer: object = None, **limits: object) -> World:
        real = dialer or Dialer(Resolver(), {}, Timeouts())
        made.append(World(Limits(**limits), table(*(routes or OPEN)), real))  # type: ignore[arg-type]
        return made[-1]

    # What imports and caches keep open is opened before anything is counted.
    Dialer(Resolver(), {}, Timeouts())
    with no_descriptor_left():
        yield make
        for one in made:
            one.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        part = sock.recv(size - len(got))
        assert part, f"only {got!r} came"
        got += part
    return got


def endpoint(server: socket.socket) -> Endpoint:
    host, port = server.getsockname()
    return Endpoint(socket.inet_aton(host), port)


def socks5(address: bytes, port: int) -> bytes:
    return CONNECT + address + port.to_bytes(2, "big")


# --- through


def test_a_forward_listener_leads_to_its_endpoint_and_is_recorded(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.FORWARD, to=endpoint(server)))
    other = here.accepted(server)
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"question"
    other.sendall(b"the answer")
    other.close()
    assert read_all(client) == b"the answer"
    record = here.record()
    assert (record.id, record.listener, record.end, record.error) == (1, "forward", End.EOF, None)
    assert (record.outcome, str(record.route)) == (Outcome.DIRECT, "test.urr:2")
    assert record.source == "{}:{}".format(*client.getsockname())
    assert (record.destination, record.name, record.port) == ("127.0.0.1", None, endpoint(server).port)
    assert (record.dialed, record.upstream) == (str(endpoint(server)), None)
    assert record.tries == (str(endpoint(server)),)
    assert (record.bytes_up, record.bytes_down) == (8, 10)
    assert abs(record.ts - time.time()) < 60
    assert 0 <= record.duration_ms < 60_000
    assert (record.log, record.tag, record.table, record.policy) == (
        "end",
        None,
        "main",
        here.relay.rules.table.digest,
    )


def test_a_transparent_listener_leads_to_the_address_the_client_dialled(world: Callable[..., World]) -> None:
    """The address dialled is the listener's own here, so a rewrite takes it from there."""
    spare = socket.create_server(("127.0.0.2", 0))
    port = spare.getsockname()[1]
    onto = Action(Direct(), Rewrite(ToPrefix(by_hand.prefix("127.0.0.2")), PortRange(port, port)))
    here = world(("127.0.0.1", onto))
    client = here.connect(here.listen(ListenerKind.TRANSPARENT))
    with spare:
        other = here.accepted(spare)
        other.sendall(b"here")
        assert client.recv(10) == b"here"
        other.close()
        client.close()
        record = here.record()
    assert record.destination == "127.0.0.1"
    assert record.rewrites == (f"127.0.0.2:{port}",)
    assert record.dialed == f"127.0.0.2:{port}"


@pytest.mark.parametrize("greeting", [b"\5\1\0", b"\5\2\0\2"])
def test_socks5_with_everything_in_one_segment(world: Callable[..., World], greeting: bytes) -> None:
    """Client bytes behind the request are the server's first ones."""
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(greeting + socks5(LOOPBACK, endpoint(server).port) + b"early")
    client.shutdown(socket.SHUT_WR)
    other = here.accepted(server)
    assert read_all(other) == b"early"
    other.sendall(pattern(MIB))
    other.close()
    reply = read_all(client)
    assert reply[:6] == b"\5\0\5\0\0\1"
    assert reply[6:10] == LOOPBACK
    assert reply[12:] == pattern(MIB)
    assert (here.record().bytes_up, here.record().bytes_down) == (5, MIB)


def test_socks4_a_byte_at_a_time(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    for byte in b"\4\1" + endpoint(server).port.to_bytes(2, "big") + LOOPBACK + b"me\0":
        client.sendall(bytes((byte,)))
    assert exactly(client, 8)[:2] == b"\0\x5a"
    other = here.accepted(server)
    other.sendall(b"hello")
    other.close()
    assert read_all(client) == b"hello"
    client.close()
    assert here.record().user == "me"


def test_a_name_is_resolved_and_dialled(world: Callable[..., World]) -> None:
    """The guard would deny loopback: the name route names it."""
    here = world(("localhost", Direct()), ("127.0.0.0/8", Direct()), ("::1", Direct()))
    server = here.server()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    name = b"localhost"
    client.sendall(b"\5\1\0\5\1\0\3" + bytes((len(name),)) + name + endpoint(server).port.to_bytes(2, "big"))
    assert exactly(client, 4) == b"\5\0\5\0"
    here.accepted(server).close()
    client.close()
    record = here.record()
    assert (record.name, record.destination, record.outcome) == ("localhost", None, Outcome.DIRECT)
    assert record.dialed == str(endpoint(server))


def test_a_unix_socket_is_a_way_out(world: Callable[..., World], tmp_path: object) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(f"{tmp_path}/forward-7.sock")
        server.listen()
        server.settimeout(PATIENCE_S)
        here = world(("127.0.0.0/8", Unix(f"{tmp_path}/{{listener}}-{{port}}.sock")))
        client = here.connect(here.listen(ListenerKind.FORWARD, to=Endpoint(LOOPBACK, 7)))
        other = here.accepted(server)
        data = pattern(MIB)
        sending = in_thread(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        assert read_all(other) == data
        sending.join()
        other.close()
        assert read_all(client) == b""
        assert here.record().dialed == f"{tmp_path}/forward-7.sock"


def test_a_login_is_needed_where_there_are_users(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.SOCKS, users=Users({b"ann": SaltedHash.of(b"secret")}))
    good, bad = here.connect(address), here.connect(address)
    request = socks5(LOOPBACK, endpoint(server).port)
    bad.sendall(b"\5\1\2\1\3ann\5wrong" + request)
    assert read_all(bad) == b"\5\2\1\1"
    good.sendall(b"\5\1\2\1\3ann\6secret" + request)
    assert exactly(good, 8)[:6] == b"\5\2\1\0\5\0"
    good.close()
    assert (here.record(1).end, here.record(1).error) == (End.ERROR, "wrong user or password")
    assert here.record(2).user == "ann"
    assert "secret" not in repr(here.records)


# --- refused


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (DenyHow.DEFAULT, 2),
        (DenyHow.NET_UNREACHABLE, 3),
        (DenyHow.HOST_UNREACHABLE, 4),
        (DenyHow.REFUSED, 5),
        (DenyHow.TTL_EXPIRED, 6),
    ],
)
def test_a_denied_client_is_told_in_its_own_terms(
    world: Callable[..., World], how: DenyHow, code: int
) -> None:
    here = world(("any", Deny(how)))
    told = here.connect(here.listen(ListenerKind.SOCKS))
    told.sendall(b"\5\1\0" + socks5(bytes((8, 8, 8, 8)), 53) + b"pipelined and never read")
    assert read_all(told) == bytes((5, 0, 5, code, 0, 1)) + bytes(6)
    told.close()
    assert here.is_reset(here.listen(ListenerKind.FORWARD, to=Endpoint(bytes((8, 8, 8, 8)), 53)))
    for number in (1, 2):
        assert (here.record(number).end, here.record(number).outcome) == (End.DENIED, Outcome.DENY)


@pytest.mark.parametrize("kind", [ListenerKind.FORWARD, ListenerKind.SOCKS])
def test_deny_silently_holds_without_a_word(world: Callable[..., World], kind: ListenerKind) -> None:
    here = world(("any", Silent()), handshake_s=0.4)
    started = time.monotonic()
    client = here.connect(here.listen(kind, to=Endpoint(bytes((8, 8, 8, 8)), 53)))
    if kind is ListenerKind.SOCKS:
        client.sendall(b"\5\1\0" + socks5(bytes((8, 8, 8, 8)), 53))
        assert client.recv(2) == b"\5\0"
    assert client.recv(1) == b""
    assert time.monotonic() - started >= 0.35
    assert (here.record().end, here.record().outcome) == (End.DENIED, Outcome.SILENT)


def test_nobody_listening_is_a_refusal(world: Callable[..., World]) -> None:
    here = world()
    # Bound, so that it is nobody else's, and not listening.
    bound = here.bound()
    nowhere = endpoint(bound)
    told = here.connect(here.listen(ListenerKind.SOCKS))
    told.sendall(b"\5\1\0" + socks5(LOOPBACK, nowhere.port))
    assert read_all(told) == b"\5\0\5\5\0\1" + bytes(6)
    assert here.is_reset(here.listen(ListenerKind.FORWARD, to=nowhere))
    assert (here.record(2).end, here.record(2).error) == (End.REFUSED, f"{nowhere}: connection refused")
    assert (here.record(2).dialed, here.record(2).tries) == (None, (str(nowhere),))


class Broken:
    """A dialer that answers as it is told."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.cancelled = threading.Event()

    def checks(self, table: object, own: object) -> None:
        """Nothing to check."""

    async def dial(self, judge: object, decision: object, asked: Asked, own: object) -> Dialed:
        self.asked.append(asked)
        if self.answer is not None:
            raise self.answer
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError


ASK_NAME = b"\5\1\0\5\1\0\3\7example\0\x50"


@pytest.mark.parametrize(
    ("answer", "code", "end"),
    [
        (DialError(Failure.NAME_NOT_FOUND, "no such name"), 4, End.REFUSED),
        (DialError(Failure.TIMEOUT, "not in time"), 4, End.TIMEOUT),
        (DialError(Failure.ERROR, "the proxy speaks nonsense"), 1, End.ERROR),
        (RuntimeError("a bug"), 1, End.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_way_out_that_fails_is_told_and_recorded(
    world: Callable[..., World], answer: Exception, code: int, end: End
) -> None:
    tries = ("192.0.2.1:80",) if isinstance(answer, DialError) else ()
    if isinstance(answer, DialError):
        answer.tries = tries
    here = world(("any", Direct()), dialer=Broken(answer))
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(ASK_NAME)
    assert read_all(client)[:4] == bytes((5, 0, 5, code))
    assert here.record().tries == tries
    assert here.record().end is end
    assert here.record().error == ("internal error" if isinstance(answer, RuntimeError) else str(answer))


def test_an_answer_that_the_policy_denies_is_a_denial(world: Callable[..., World]) -> None:
    here = world(("any", Direct()))
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0\5\1\0\3\x09localhost\0\x50")
    assert read_all(client)[:4] == b"\5\0\5\2"
    record = here.record()
    assert (record.end, record.outcome, record.dialed) == (End.DENIED, Outcome.DENY, None)


def test_a_client_that_leaves_stops_the_dialling(world: Callable[..., World]) -> None:
    dialer = Broken(None)
    here = world(("any", Direct()), dialer=dialer)
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(ASK_NAME)
    assert client.recv(2) == b"\5\0"
    reset(client)
    assert dialer.cancelled.wait(PATIENCE_S)
    assert (here.record().end, here.record().error) == (End.RESET, "reset by the client")


# --- handshakes


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\5\1\0\5\2\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7"),
        (b"\5\1\0\5\1\0\3\x04127.\0\x50", b"\5\0\5\1"),
        (b"\5\1\2", b"\5\xff"),
    ],
    ids=["no SOCKS", "BIND", "half an address", "no method"],
)
def test_a_broken_handshake_is_answered_and_closed(
    world: Callable[..., World], sent: bytes, reply: bytes
) -> None:
    here = world()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(sent)
    with contextlib.suppress(ConnectionResetError):
        assert read_all(client).startswith(reply)
    assert here.record().end is End.ERROR
    assert here.record().decision is None


def test_a_trickling_client_is_cut_at_an_absolute_deadline(world: Callable[..., World]) -> None:
    here = world(handshake_s=0.5)
    client = here.connect(here.listen(ListenerKind.SOCKS))
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        _trickle(client)
    assert 0.4 <= time.monotonic() - started <= 10
    assert (here.record().end, here.record().error) == (End.TIMEOUT, "no complete request in 0.5 s")


def _trickle(client: socket.socket) -> None:
    client.sendall(b"\4\1\0\x50\x7f\0\0\1")
    for _ in range(240):
        client.sendall(b"x")
        threading.Event().wait(0.05)


def test_newcomers_do_not_wait_for_those_who_never_ask(world: Callable[..., World]) -> None:
    here = world(max_handshakes=10)
    server = here.server()
    address = here.listen(ListenerKind.SOCKS)
    idle = [here.connect(address) for _ in range(30)]
    client = here.connect(address)
    client.sendall(b"\5\1\0" + socks5(LOOPBACK, endpoint(server).port))
    assert exactly(client, 4) == b"\5\0\5\0"
    assert here.stats().handshaking <= 10
    assert read_until_reset(idle[0]) == b""
    assert here.record().error == "too many handshakes at once"


# --- loops


def test_a_connection_to_our_own_listener_is_refused(world: Callable[..., World]) -> None:
    here = world()
    port = here.listen(ListenerKind.SOCKS)[1]
    assert here.is_reset(here.listen(ListenerKind.FORWARD, to=Endpoint(LOOPBACK, port)))
    assert (here.record().end, here.record().error) == (
        End.REFUSED,
        f"127.0.0.1:{port} is our own listener `socks`",
    )


def test_a_transparent_listener_that_is_dialled_directly_does_not_dial_itself(
    world: Callable[..., World],
) -> None:
    here = world()
    assert here.is_reset(here.listen(ListenerKind.TRANSPARENT))
    assert here.record().end is End.REFUSED
    assert here.stats().accepted == 1


def test_a_name_that_leads_to_our_own_listener_is_refused(world: Callable[..., World]) -> None:
    here = world(("127.0.0.0/8", Direct()), ("::1", Direct()), ("localhost", Direct()))
    port = here.listen(ListenerKind.FORWARD, to=Endpoint(LOOPBACK, 1))[1]
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0\5\1\0\3\x09localhost" + port.to_bytes(2, "big"))
    # ::1 is tried too, and refuses by itself where nothing listens on it.
    assert read_all(client)[:4] in (b"\5\0\5\5", b"\5\0\5\2")
    assert here.record().end in (End.REFUSED, End.DENIED)
    assert here.stats().accepted == 1


# --- running out


def test_running_out_of_descriptors_pauses_accepting_and_hurts_nobody_connected(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(accept_pause_s=0.1)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    client = here.connect(address)
    other = here.accepted(server)
    # Its batch is over once the loop has time for this.
    acceptor = here.thread.call(lambda: here.relay._acceptors[0])
    refusals = []

    class Exhausted:
        """A listening socket in a process without descriptors."""

        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def fileno(self) -> int:
            return self.real.fileno()

        def _accept(self) -> object:
            refusals.append(time.monotonic())
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def close(self) -> None:
            self.real.close()

    real = acceptor.sock
    acceptor.sock = Exhausted(real)  # type: ignore[assignment]
    began = time.monotonic()
    late = here.connect(address)
    for _ in range(50):
        client.sendall(b"ping")
        assert other.recv(4) == b"ping"
        threading.Event().wait(0.01)
    took_s = time.monotonic() - began
    assert 1 <= len(refusals) <= took_s / 0.1 + 2
    assert here.stats().accept_pauses >= 1
    assert 1 <= sum("accepting pauses" in each.message for each in caplog.records) <= took_s + 1
    acceptor.sock = real
    served = here.accepted(server)
    late.sendall(b"at last")
    assert served.recv(10) == b"at last"


def test_no_more_connections_than_allowed_and_the_rest_wait(world: Callable[..., World]) -> None:
    here = world(max_connections=2)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    clients = [here.connect(address) for _ in range(3)]
    others = [here.accepted(server) for _ in range(2)]
    clients[2].sendall(b"third")
    assert here.stats().active == 2
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.accept()
    server.settimeout(PATIENCE_S)
    clients[0].close()
    others[0].close()
    here.record()
    assert here.accepted(server).recv(5) == b"third"


def test_many_short_connections_leave_nothing(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))

    def serve() -> None:
        for _ in range(500):
            other, _peer = server.accept()
            other.sendall(other.recv(1))
            other.close()

    serving = in_thread(serve)
    for _ in range(500):
        with socket.create_connection(address, PATIENCE_S) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    serving.join()
    here.record(500)
    stats = here.stats()
    assert (stats.accepted, stats.active, stats.ended) == (500, 0, {"eof": 500})
    assert stats.bytes_up == stats.bytes_down == 500


def test_a_finished_connection_waits_for_no_garbage_collector(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    forward = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    socks = here.listen(ListenerKind.SOCKS)
    gc.collect()
    gc.disable()
    try:
        for number in range(40):
            client = here.connect(socks if number % 2 else forward)
            if number % 2:
                client.sendall(b"\5\1\0" + socks5(LOOPBACK, endpoint(server).port))
            other = here.accepted(server)
            (reset if number % 4 < 2 else socket.socket.close)(client)
            other.close()
        here.record(40)
        here.thread.call(lambda: None)
        left = gc.get_objects()
        assert not [each for each in left if isinstance(each, Connection) and each.relay is here.relay]
        assert not [each for each in left if isinstance(each, Direction)]
    finally:
        gc.enable()


# --- change


def test_a_reload_changes_newcomers_only(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    old = here.connect(address)
    other = here.accepted(server)
    closed = table(("any", Deny()))
    here.thread.call(lambda: here.relay.replace(closed, here.relay.rules.dialer))
    assert here.is_reset(address)
    old.sendall(b"still here")
    assert other.recv(20) == b"still here"
    assert here.record().policy == closed.digest


def test_a_client_in_the_middle_of_its_handshake_keeps_its_policy(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0")
    assert client.recv(2) == b"\5\0"
    here.thread.call(lambda: here.relay.replace(table(("any", Deny())), here.relay.rules.dialer))
    client.sendall(socks5(LOOPBACK, endpoint(server).port))
    assert client.recv(2) == b"\5\0"
    here.accepted(server)


def test_a_removed_listener_accepts_nobody_and_its_clients_stay(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    client = here.connect(address)
    other = here.accepted(server)
    here.thread.call(lambda: here.relay.remove_listener("forward"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)
    client.sendall(b"x")
    assert other.recv(1) == b"x"


def test_draining_waits_for_connections_and_then_resets_them(world: Callable[..., World]) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    quick, slow = here.connect(address), here.connect(address)
    ends = {sock.getpeername(): sock for sock in (here.accepted(server), here.accepted(server))}
    assert len(ends) == 2
    quick.sendall(b"q")
    slow.sendall(b"s")
    by_letter = {sock.recv(1): sock for sock in ends.values()}
    draining = in_thread(lambda: here.thread.run(here.relay.drain(0.5)))
    by_letter[b"q"].sendall(b"in time")
    by_letter[b"q"].close()
    assert read_all(quick) == b"in time"
    quick.close()
    assert read_until_reset(slow) == b""
    draining.join()
    assert (here.record(1).end, here.record(2).end) == (End.EOF, End.ERROR)
    assert here.record(2).error == "the relay is stopping"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)


def test_draining_ends_as_soon_as_the_last_connection_does(world: Callable[..., World]) -> None:
    here = world()
    started = time.monotonic()
    here.thread.run(here.relay.drain(30))
    assert time.monotonic() - started < 15


def test_a_log_that_fails_harms_no_connection(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    server = here.server()

    def fail(record: Record) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(here.relay, "_on_end", fail)
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    for _ in range(2):
        client = here.connect(address)
        other = here.accepted(server)
        client.close()
        other.close()
    deadline = time.monotonic() + PATIENCE_S
    while here.stats().active:
        assert time.monotonic() < deadline
    assert any(each.levelno == logging.ERROR for each in caplog.records)


def test_denied_is_a_dial_error() -> None:
    """What the relay relies on: Denied must be caught before DialError."""
    assert issubclass(Denied, DialError)


def test_a_name_may_come_from_a_rewrite(world: Callable[..., World]) -> None:
    here = world(("192.0.2.1", Action(Direct(), Rewrite(ToName("localhost")))), ("127.0.0.1", Direct()))
    server = here.server()
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0" + socks5(bytes((192, 0, 2, 1)), endpoint(server).port))
    assert exactly(client, 4) == b"\5\0\5\0"
