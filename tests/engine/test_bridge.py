"""TLS behind the pump: every byte, each end as it is, nothing without bound, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.rig import Network, until
from tests.engine.rig import (
    PATIENCE_S,
    Rig,
    Run,
    in_thread,
    no_descriptor_left,
    pattern,
    read_all,
    read_until_reset,
    reset,
    tcp_pair,
)
from tests.engine.tls_peers import Authority, TlsEnd
from urelay.engine.limits import Limits
from urelay.engine.record import End
from urelay.engine.tls import Tls

pytestmark = pytest.mark.peer("openssl")

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class Secure:
    """A relayed connection to a TLS server that the test plays."""

    def __init__(
        self,
        rig: Rig,
        authority: Authority,
        version: ssl.TLSVersion,
        banner: bytes = b"",
        small: int = 0,
        pair: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        """`small` bounds the kernel's buffers for TCP, in bytes; `pair` is the server's end and ours."""
        server, raw = pair or tcp_pair(small)
        raw.setblocking(False)
        end = TlsEnd(server, authority.server("DNS:secure.example", version=version))
        shaking = in_thread(lambda: end.shake_hands(banner))
        context = ssl.create_default_context(cafile=str(authority.certificate))
        near = rig.thread.run(Tls(context).start(raw, "secure.example", PATIENCE_S))
        assert isinstance(near, socket.socket)
        shaking.join()
        self.server = end
        self.run: Run = rig.flow(server_pair=(server, near), small=small)
        self.client = self.run.client


Make = Callable[..., Secure]


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
def secure(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Make]:
    """Makes connections, and waits until nothing of them is left."""
    authority.server("DNS:secure.example")
    with no_descriptor_left():
        rig = Rig(Limits(reset_drain_s=5))
        made = []

        def make(banner: bytes = b"", small: int = 0) -> Secure:
            made.append(Secure(rig, authority, request.param, banner, small))
            return made[-1]

        yield make
        for one in made:
            one.client.close()
            one.server.raw.close()
            one.run.ended.wait()
        rig.thread.run(_at_rest(rig.thread.loop))
        rig.close()


async def _at_rest(loop: asyncio.AbstractEventLoop) -> None:
    """Until the loop watches what it watched before: its own wake-up and the poller."""
    selector = loop._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE_S):
        while len(selector.get_map()) > 2:
            await asyncio.sleep(0.002)


def test_megabytes_both_ways_and_a_half_close_each_way(secure: Make) -> None:
    one = secure()
    up, down = pattern(3 << 20, 1), pattern(5 << 20, 2)
    got = []

    def serve() -> None:
        # OpenSSL is not for two threads at once, so the server listens first and talks then.
        got.append(one.server.read_all())
        one.server.sendall(down)
        one.server.say_goodbye()

    serving = in_thread(serve)
    one.client.sendall(up)
    one.client.shutdown(socket.SHUT_WR)
    assert read_all(one.client) == down
    serving.join()
    assert got == [up]
    assert one.run.ended.wait().end is End.EOF
    assert (one.run.ended.bytes_up, one.run.ended.bytes_down) == (len(up), len(down))


def test_the_server_may_end_first_and_still_listen(secure: Make) -> None:
    one = secure()
    one.server.sendall(b"bye")
    one.server.say_goodbye()
    assert read_all(one.client) == b"bye"
    data = pattern(1 << 20)
    sending = in_thread(lambda: (one.client.sendall(data), one.client.shutdown(socket.SHUT_WR)))
    assert one.server.read_all() == data
    sending.join()
    assert one.run.ended.wait().end is End.EOF


def test_what_comes_with_the_handshake_is_not_lost(secure: Make) -> None:
    banner = b"220 ready\r\n"
    one = secure(banner=banner)
    assert one.client.recv(100) == banner


def test_an_end_without_goodbye_is_a_reset_behind_the_data(secure: Make) -> None:
    """Anybody on the path can make a FIN."""
    one = secure()
    data = pattern(600_000)
    sending = in_thread(lambda: (one.server.sendall(data), one.server.raw.shutdown(socket.SHUT_WR)))
    assert read_until_reset(one.client) == data
    sending.join()
    assert one.run.ended.wait().end is End.RESET


def test_a_reset_by_the_server_is_a_reset(secure: Make) -> None:
    one = secure()
    one.server.sendall(b"hello")
    assert one.client.recv(5) == b"hello"
    one.server.reset()
    assert read_until_reset(one.client) == b""
    assert one.run.ended.wait().end is End.RESET


def test_a_reset_behind_a_half_close_is_a_reset(secure: Make) -> None:
    one = secure()
    one.client.shutdown(socket.SHUT_WR)
    assert one.server.read_all() == b""
    one.server.sendall(b"some")
    assert one.client.recv(4) == b"some"
    one.server.reset()
    assert read_until_reset(one.client) == b""
    assert one.run.ended.wait().end is End.RESET


def test_a_reset_by_the_client_is_no_goodbye(secure: Make) -> None:
    """The server gets what came before it, and then no close_notify: what it got may be half."""
    one = secure()
    data = pattern(50_000)
    one.client.sendall(data)
    got = b""
    while len(got) < len(data):
        got += one.server.recv(1 << 16)
    assert got == data
    reset(one.client)
    with pytest.raises(OSError) as caught:
        one.server.recv(1)
    assert caught.value.errno == errno.ECONNRESET or isinstance(caught.value, ssl.SSLEOFError)
    assert not isinstance(caught.value, ssl.SSLZeroReturnError)
    assert one.run.ended.wait().end is End.RESET


def test_bytes_that_are_no_tls_are_a_reset(secure: Make) -> None:
    one = secure()
    one.server.sendall(b"right")
    one.server.raw.sendall(b"\x17\x03\x03\x00\x20" + os.urandom(32))
    assert read_until_reset(one.client) == b"right"
    assert one.run.ended.wait().end is End.RESET


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reader_that_stalls_stops_the_writer_and_loses_nothing(secure: Make, side: str) -> None:
    """R10: what is held for it is bounded by the kernel's buffers, not by what is offered."""
    one = secure(small=1 << 16)
    data = pattern(6 << 20)
    sent = [0]

    def send() -> None:
        with contextlib.suppress(OSError):
            while sent[0] < len(data):
                part = data[sent[0] : sent[0] + (1 << 15)]
                one.client.sendall(part) if side == "server" else one.server.sendall(part)
                sent[0] += len(part)

    sending = in_thread(send)
    seen = -1
    while seen != sent[0]:
        seen = sent[0]
        sending.join(0.3)
    assert sent[0] < 3 << 20, "much was taken without a reader"
    digest = 0
    while digest < len(data):
        part = one.client.recv(1 << 18) if side == "client" else one.server.recv(1 << 18)
        assert part == data[digest : digest + len(part)]
        digest += len(part)
    sending.join()


def test_a_near_end_that_is_just_closed_ends_everything(authority: Authority) -> None:
    """As a dial that is cancelled does."""
    with no_descriptor_left():
        rig = Rig()
        server, raw = tcp_pair()
        raw.setblocking(False)
        end = TlsEnd(server, authority.server("DNS:secure.example"))
        shaking = in_thread(end.shake_hands)
        context = ssl.create_default_context(cafile=str(authority.certificate))
        near = rig.thread.run(Tls(context).start(raw, "secure.example", PATIENCE_S))
        shaking.join()
        rig.thread.call(near.close)  # type: ignore[attr-defined]
        assert end.read_all() == b""
        rig.thread.run(_at_rest(rig.thread.loop))
        server.close()
        rig.close()


@pytest.mark.netns
def test_a_server_that_is_gone_without_a_word_is_noticed(authority: Authority) -> None:
    """R20, for TLS: it is the server's kernel that is asked, not the near end's."""
    limits = Limits(keepalive_from_s=0.2, probe_after_s=1, probe_every_s=1, unheard_s=1.5)
    with Network() as net:
        near, far = net.namespace("near"), net.namespace("far")
        net.wire(near, far, ["10.20.0.1/24"], ["10.20.0.2/24"])
        with no_descriptor_left():
            rig = Rig(limits)
            with far.listen("10.20.0.2") as listener:
                port = listener.getsockname()[1]
                raws = [near.connect("10.20.0.2", port) for _ in range(2)]
                pairs = [(listener.accept()[0], raw) for raw in raws]
            both = [Secure(rig, authority, VERSIONS[1], pair=pair) for pair in pairs]
            for one in both:
                one.client.sendall(b"first")
                assert one.server.recv(5) == b"first"
            # The far end: the near one keeps its route, and nothing comes back.
            far.ip("link", "set", "near", "down")
            # The first is idle and has to be probed; the second has bytes in flight.
            both[1].client.sendall(b"anybody there?")
            for one in both:
                assert read_until_reset(one.client) == b""
                ended = one.run.ended.wait()
                assert (ended.end, ended.error) == (End.TIMEOUT, "the server stopped answering")
                one.server.raw.close()
            until(lambda: all(raw.fileno() == -1 for raw in raws), "the bridges end")
            rig.thread.run(_at_rest(rig.thread.loop))
            rig.close()


def test_many_at_once(secure: Make) -> None:
    """Twenty connections, all of them talking both ways."""
    for one in [secure() for _ in range(20)]:
        data = pattern(200_000)
        sending = in_thread(lambda one=one, data=data: one.client.sendall(data))
        got = b""
        while len(got) < len(data):
            got += one.server.recv(1 << 16)
        sending.join()
        assert got == data
        one.server.sendall(data)
        back = b""
        while len(back) < len(data):
            back += one.client.recv(1 << 16)
        assert back == data
