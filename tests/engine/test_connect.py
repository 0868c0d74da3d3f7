"""Connecting ends in one open socket to an address that was asked for, or in none at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from urelay.engine import connect
from urelay.engine.connect import Timeouts, connect_tcp, connect_unix
from urelay.engine.ends import far_end, own_end
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, parse_address

FAST = Timeouts(address_s=5, total_s=10, stagger_s=0.02)
IMPATIENT = Timeouts(address_s=0.3, total_s=2, stagger_s=0.02)
"""For addresses that are known to be silent."""
V4 = parse_address("127.0.0.1")
V6 = parse_address("::1")


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run in a loop of its own; every descriptor is back afterwards."""
    before = descriptors()
    asyncio.run(main())  # type: ignore[arg-type]
    assert descriptors() == before


@contextmanager
def listening(address: bytes = V4, backlog: int = 64) -> Iterator[Endpoint]:
    """A TCP listener that nobody accepts from, and where it is."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.create_server(
        (socket.inet_ntop(family, address), 0), family=family, backlog=backlog
    ) as server:
        yield Endpoint(address, server.getsockname()[1])


@contextmanager
def refusing(address: bytes = V4) -> Iterator[Endpoint]:
    """A port that is bound, so that it is nobody else's, and not listening."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.socket(family) as sock:
        sock.bind((socket.inet_ntop(family, address), 0))
        yield Endpoint(address, sock.getsockname()[1])


@contextmanager
def silent() -> Iterator[Endpoint]:
    """A port that drops every SYN: a listener whose queue of one is full."""
    with listening(backlog=0) as endpoint:
        fillers = []
        for _ in range(2):
            filler = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            filler.connect_ex(("127.0.0.1", endpoint.port))
            fillers.append(filler)
        yield endpoint
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("address", [V4, V6], ids=["ipv4", "ipv6"])
def test_a_socket_is_connected_and_non_blocking(address: bytes) -> None:
    async def main() -> None:
        with listening(address) as endpoint:
            tries: list[str] = []
            sock, far = await connect_tcp([endpoint], FAST, tries)
            with sock:
                assert far_end(sock) == far == endpoint
                own = own_end(sock)
                assert own is not None
                assert own.host == address
                assert sock.getblocking() is False
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.get_inheritable() is False
                assert tries == [str(endpoint)]

    run(main)


def test_the_first_address_that_answers_wins() -> None:
    async def main() -> None:
        with listening() as good, refusing(V6) as bad, silent() as dead:
            tries: list[str] = []
            sock, far = await connect_tcp([bad, dead, good], FAST, tries)
            with sock:
                assert far_end(sock) == far == good
            assert tries == [str(bad), str(dead), str(good)]

    run(main)


def test_families_take_turns() -> None:
    six = [Endpoint(V6, n) for n in range(1, 4)]
    four = [Endpoint(V4, n) for n in range(1, 3)]
    assert connect._interleaved(six + four) == [six[0], four[0], six[1], four[1], six[2]]
    assert connect._interleaved([]) == []


def test_a_dead_family_costs_one_stagger() -> None:
    """R16: one address is dead, the other answers: done in a stagger or two, not in a timeout."""

    async def main() -> None:
        with listening(V6) as good, silent() as dead:
            loop = asyncio.get_running_loop()
            start = loop.time()
            (await connect_tcp([dead, good], Timeouts(stagger_s=0.05)))[0].close()
            assert 0.04 < loop.time() - start < 5

    run(main)


def test_a_refused_address_costs_nothing() -> None:
    async def main() -> None:
        with listening() as good, refusing(V6) as bad:
            loop = asyncio.get_running_loop()
            start = loop.time()
            (await connect_tcp([bad, good], Timeouts(stagger_s=9)))[0].close()
            assert loop.time() - start < 5

    run(main)


def test_at_most_four_addresses_are_tried_at_a_time() -> None:
    async def main() -> None:
        with silent() as dead, listening() as good:
            before = descriptors()
            task = asyncio.get_running_loop().create_task(
                connect_tcp([dead] * 9 + [good], Timeouts(address_s=0.2, stagger_s=0.001))
            )
            most = 0
            while not task.done():
                most = max(most, descriptors() - before)
                await asyncio.sleep(0.001)
            (await task)[0].close()
            assert most == 4

    run(main)


def failing(endpoints: list[Endpoint], timeouts: Timeouts = FAST) -> DialError:
    """What connecting to them says."""
    caught: list[DialError] = []

    async def main() -> None:
        with pytest.raises(DialError) as error:
            await connect_tcp(endpoints, timeouts)
        caught.append(error.value)

    run(main)
    return caught[0]


def test_a_refusal_is_told() -> None:
    with refusing() as bad:
        error = failing([bad])
        assert (error.failure, str(error)) == (Failure.REFUSED, f"{bad}: connection refused")


def test_silence_is_a_timeout() -> None:
    with silent() as dead:
        error = failing([dead], IMPATIENT)
        assert (error.failure, str(error)) == (Failure.TIMEOUT, f"{dead}: no answer in time")


def test_failures_that_agree_are_told_as_they_are_and_others_as_unreachable() -> None:
    with refusing() as bad, refusing(V6) as worse, silent() as dead:
        assert failing([bad, worse]).failure is Failure.REFUSED
        # Connecting to the broadcast address fails at once, with a number of its own.
        broadcast = Endpoint(parse_address("255.255.255.255"), 9)
        assert failing([bad, broadcast]).failure is Failure.HOST_UNREACHABLE
        assert failing([bad, dead], IMPATIENT).failure is Failure.TIMEOUT


def test_no_address_is_unreachable() -> None:
    assert failing([]).failure is Failure.HOST_UNREACHABLE


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ECONNREFUSED, Failure.REFUSED),
        (errno.EHOSTUNREACH, Failure.HOST_UNREACHABLE),
        (errno.ENETUNREACH, Failure.NET_UNREACHABLE),
        (errno.EADDRNOTAVAIL, Failure.NET_UNREACHABLE),
        (errno.ETIMEDOUT, Failure.TIMEOUT),
        (errno.EMFILE, Failure.ERROR),
    ],
)
def test_an_error_number_has_its_failure(number: int, failure: Failure) -> None:
    assert connect.failure_of(OSError(number, "x")) is failure


def test_a_socket_that_met_itself_is_refused() -> None:
    """R22: both ends of a TCP connection may be the same socket; that is nobody's answer."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        here = sock.getsockname()
        sock.connect(here)
        with pytest.raises(DialError, match="the connection met itself") as caught:
            connect._checked_far_end(sock, [Endpoint(V4, here[1])])
        assert caught.value.failure is Failure.REFUSED


def test_a_socket_that_is_elsewhere_is_refused() -> None:
    with listening() as there, socket.create_connection(("127.0.0.1", there.port)) as sock:
        with pytest.raises(DialError, match="which was not asked for"):
            connect._checked_far_end(sock, [Endpoint(V4, there.port + 1)])


def test_no_cancel_at_any_moment_leaks_a_socket() -> None:
    async def main() -> None:
        rng = random.Random(16)
        loop = asyncio.get_running_loop()
        with listening() as good, refusing() as bad, silent() as dead, listening(V6) as other:
            for _ in range(400):
                ways = rng.sample([good, bad, dead, other], rng.randint(1, 4))
                task = loop.create_task(connect_tcp(ways, Timeouts(address_s=0.05, stagger_s=0.001)))
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
                # A race may be won in the same moment: then the socket is ours to close.
                (result,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(result, tuple):
                    result[0].close()

    run(main)


def test_no_descriptor_left_is_a_failure_like_any_other(tmp_path: Path) -> None:
    async def main() -> None:
        with listening() as good:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            highest = max(int(number) for number in os.listdir("/proc/self/fd"))
            fillers = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        fillers.append(os.dup(0))
                for attempt in (connect_tcp([good], FAST), connect_unix(str(tmp_path / "s"), 1)):
                    with pytest.raises(DialError, match="too many open files") as caught:
                        await attempt
                    assert caught.value.failure is Failure.ERROR
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for filler in fillers:
                    os.close(filler)

    run(main)


# --- unix sockets


@contextmanager
def unix_listener(path: Path, backlog: int = 16) -> Iterator[socket.socket]:
    """A listening unix socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        yield server


def test_a_unix_socket_is_connected(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "s"), await connect_unix(str(tmp_path / "s"), 1) as sock:
            assert sock.getpeername() == str(tmp_path / "s")
            assert sock.getblocking() is False
            assert far_end(sock) is None
            assert own_end(sock) is None

    run(main)


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "s", backlog=0) as server:
            first = await connect_unix(str(tmp_path / "s"), 1)
            task = asyncio.get_running_loop().create_task(connect_unix(str(tmp_path / "s"), 5))
            await asyncio.sleep(0.02)
            assert not task.done()
            server.accept()[0].close()
            (await task).close()
            first.close()

    run(main)


def test_waiting_for_a_backlog_can_be_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "s", backlog=0):
            first = await connect_unix(str(tmp_path / "s"), 1)
            before = descriptors()
            task = asyncio.get_running_loop().create_task(connect_unix(str(tmp_path / "s"), 5))
            while descriptors() == before:
                await asyncio.sleep(0)
            task.cancel()
            # The error is held, so that its traceback cannot lose the socket for us.
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert descriptors() == before, caught
            first.close()

    run(main)


def test_a_backlog_that_stays_full_is_a_timeout(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "s", backlog=0):
            first = await connect_unix(str(tmp_path / "s"), 1)
            with pytest.raises(DialError) as caught:
                await connect_unix(str(tmp_path / "s"), 0.1)
            assert caught.value.failure is Failure.TIMEOUT
            first.close()

    run(main)


@pytest.mark.parametrize(
    ("path", "failure", "words"),
    [
        pytest.param("none", Failure.HOST_UNREACHABLE, "no such file or directory", id="missing"),
        pytest.param("stale", Failure.REFUSED, "connection refused", id="stale"),
        pytest.param("file", Failure.REFUSED, "connection refused", id="no-socket"),
        pytest.param("a\0b", Failure.ERROR, "is not the path of a unix socket", id="nul"),
        pytest.param("x" * 120, Failure.ERROR, "is not the path of a unix socket", id="too-long"),
    ],
)
def test_a_unix_socket_that_is_none_is_told(tmp_path: Path, path: str, failure: Failure, words: str) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))

    async def main() -> None:
        with pytest.raises(DialError, match=words) as caught:
            await connect_unix(str(tmp_path / path), 1)
        assert caught.value.failure is failure

    run(main)


def test_an_abstract_socket_is_never_connected_to() -> None:
    """S14: a path that begins with NUL would leave the file system."""

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("\0urelay-test")
            server.listen()
            with pytest.raises(DialError, match="is not the path of a unix socket"):
                await connect_unix("\0urelay-test", 1)

    run(main)
