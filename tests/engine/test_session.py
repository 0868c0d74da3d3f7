"""Conversations: what a client is told, in which order, whatever the policy and the way out say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from urelay.engine.session import (
    DIAL,
    DIRECT_SESSION,
    HAND_OVER,
    HOLD,
    RESET,
    SESSIONS,
    Ask,
    HandOver,
    Refuse,
    Reply,
    Session,
)
from urelay.errors import Failure
from urelay.lang.source import Origin
from urelay.net.address import Endpoint
from urelay.policy.model import DenyHow, ListenerKind, Outcome
from urelay.protocols.users import SaltedHash, Users
from urelay.table.decision import Decision

ROOT = Path(__file__).resolve().parents[2]


def decision(outcome: Outcome, how: DenyHow = DenyHow.DEFAULT, **said: object) -> Decision:
    return Decision(outcome, "main", "digest", deny_how=how, **said)  # type: ignore[arg-type]


SOCKS5 = b"\5\1\0\5\1\0\1\x0a\1\2\3\0\x50"
ASKED = Endpoint(bytes((10, 1, 2, 3)), 80)
HTTP = b"CONNECT 10.1.2.3:80 HTTP/1.0\r\n\r\n"


def asked_session(kind: ListenerKind = ListenerKind.SOCKS) -> Session:
    """A session whose client has asked, in SOCKS5 or with CONNECT."""
    session = SESSIONS[kind](None)
    http = kind is ListenerKind.HTTP
    assert session.receive(HTTP if http else SOCKS5) == Ask(ASKED, None, b"" if http else b"\5\0")
    return session


def told(session: Session, outcome: Decision | Failure) -> str:
    """Status, error type and text of the answer an HTTP client gets."""
    command = session.failed(outcome) if isinstance(outcome, Failure) else session.decided(outcome)
    assert isinstance(command, Refuse)
    head, _, body = command.reply.decode("ascii").partition("\r\n\r\n")
    error = head.partition("error=")[2].partition(";")[0]
    return f"{head[9:12]} {error}: {body.rstrip()}"


@pytest.mark.parametrize("outcome", [Outcome.DIRECT, Outcome.VIA, Outcome.UNIX])
def test_what_is_let_through_is_dialled(outcome: Outcome) -> None:
    assert DIRECT_SESSION.decided(decision(outcome)) is DIAL
    assert asked_session().decided(decision(outcome)) is DIAL
    assert asked_session(ListenerKind.HTTP).decided(decision(outcome)) is DIAL


def test_silence_is_held() -> None:
    assert DIRECT_SESSION.decided(decision(Outcome.SILENT)) is HOLD
    assert asked_session().decided(decision(Outcome.SILENT)) is HOLD
    assert asked_session(ListenerKind.HTTP).decided(decision(Outcome.SILENT)) is HOLD


@pytest.mark.parametrize("how", DenyHow)
def test_a_transparent_client_is_reset_whatever_the_denial(how: DenyHow) -> None:
    assert DIRECT_SESSION.decided(decision(Outcome.DENY, how)) is RESET


@pytest.mark.parametrize("failure", Failure)
def test_a_transparent_client_is_reset_whatever_failed(failure: Failure) -> None:
    assert DIRECT_SESSION.failed(failure) is RESET


# RFC 1928, 6, read with a finger.
CODES = {
    Failure.DENIED: 2,
    Failure.NET_UNREACHABLE: 3,
    Failure.HOST_UNREACHABLE: 4,
    Failure.NAME_NOT_FOUND: 4,
    Failure.TIMEOUT: 4,
    Failure.REFUSED: 5,
    Failure.TTL_EXPIRED: 6,
    Failure.ERROR: 1,
}


@pytest.mark.parametrize("failure", Failure)
def test_a_socks_client_is_told_what_failed(failure: Failure) -> None:
    command = asked_session().failed(failure)
    assert isinstance(command, Refuse)
    assert command.reply == bytes((5, CODES[failure], 0, 1)) + bytes(6)


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
def test_a_socks_client_is_told_the_denial_that_was_written(how: DenyHow, code: int) -> None:
    command = asked_session().decided(decision(Outcome.DENY, how))
    assert isinstance(command, Refuse)
    assert command.reply[1] == code


def test_a_conversation_byte_by_byte_ends_like_one_in_a_piece() -> None:
    session = SESSIONS[ListenerKind.SOCKS](None)
    commands = [session.receive(bytes((byte,))) for byte in SOCKS5]
    assert [command for command in commands if command != Reply(b"")] == [
        Reply(b"\5\0"),
        Ask(ASKED, None, b""),
    ]


def test_pipelined_bytes_come_first_and_the_reply_tells_our_end() -> None:
    session = SESSIONS[ListenerKind.SOCKS](None)
    assert isinstance(session.receive(SOCKS5 + b"GET /"), Ask)
    bound = Endpoint(bytes((192, 0, 2, 9)), 0x1234)
    command = session.dialed(bound)
    assert command == HandOver(b"\5\0\0\1\xc0\0\2\x09\x12\x34", b"GET /")


def test_a_transparent_client_is_handed_over_without_a_word() -> None:
    assert DIRECT_SESSION.dialed(None) is HAND_OVER
    assert not DIRECT_SESSION.tells_bound


def test_a_broken_handshake_is_refused_with_what_is_owed() -> None:
    command = SESSIONS[ListenerKind.SOCKS](None).receive(b"\5\1\0\5\2\0\1\x0a\1\2\3\0\x50")
    assert command == Refuse(b"\5\0\5\7\0\1" + bytes(6), "command 2 is not CONNECT")


# --- http and mixed


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Failure.DENIED, "403 http_request_denied: denied"),
        (Failure.REFUSED, "502 connection_refused: connection refused"),
        (Failure.HOST_UNREACHABLE, "502 destination_ip_unroutable: host unreachable"),
        (Failure.NET_UNREACHABLE, "502 destination_ip_unroutable: network unreachable"),
        (Failure.TTL_EXPIRED, "502 destination_ip_unroutable: time to live expired"),
        (Failure.NAME_NOT_FOUND, "502 dns_error: no such host"),
        (Failure.TIMEOUT, "504 connection_timeout: no answer in time"),
        (Failure.ERROR, "502 proxy_internal_error: the way out failed"),
    ],
)
def test_an_http_client_is_told_what_failed(failure: Failure, answer: str) -> None:
    assert told(asked_session(ListenerKind.HTTP), failure) == answer


ROUTE = Origin("/etc/urelay/site.urr", 7, "match any -> deny")
WALL = Origin("site.urr", 3, "forbid any port 80")


@pytest.mark.parametrize(
    ("denial", "answer"),
    [
        (decision(Outcome.DENY, route=ROUTE), "403 http_request_denied: denied by site.urr:7"),
        (decision(Outcome.DENY, wall=WALL, route=ROUTE), "403 http_request_denied: denied by site.urr:3"),
        (decision(Outcome.DENY, why="it is forged", route=ROUTE), "403 http_request_denied: it is forged"),
        (decision(Outcome.DENY), "403 http_request_denied: no route matches"),
        (
            decision(Outcome.DENY, DenyHow.REFUSED, route=ROUTE),
            "502 connection_refused: connection refused",
        ),
        (
            decision(Outcome.DENY, DenyHow.HOST_UNREACHABLE, route=ROUTE),
            "502 destination_ip_unroutable: host unreachable",
        ),
    ],
)
def test_an_http_client_is_told_the_denial_that_was_written(denial: Decision, answer: str) -> None:
    """The reason of a plain `deny`; of a `deny` that claims something else, nothing but the claim."""
    assert told(asked_session(ListenerKind.HTTP), denial) == answer


def test_an_http_client_is_answered_behind_the_dial_and_its_early_bytes_come_first() -> None:
    session = SESSIONS[ListenerKind.HTTP](None)
    assert session.receive(HTTP[:9]) == Reply(b"")
    assert session.receive(HTTP[9:] + b"GET /") == Ask(ASKED, None, b"")
    assert session.dialed(None) == HandOver(b"HTTP/1.1 200 Connection Established\r\n\r\n", b"GET /")


def test_a_broken_request_is_refused_with_its_answer() -> None:
    command = SESSIONS[ListenerKind.HTTP](None).receive(b"GET / HTTP/1.0\r\n\r\n")
    assert isinstance(command, Refuse)
    assert command.reply.startswith(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n")
    assert command.error == "method `GET` is not CONNECT"


def test_a_mixed_listener_speaks_what_the_client_speaks() -> None:
    socks, http = (SESSIONS[ListenerKind.MIXED](None) for _ in range(2))
    assert socks.receive(SOCKS5) == Ask(ASKED, None, b"\5\0")
    assert socks.failed(Failure.REFUSED) == Refuse(b"\5\5\0\1" + bytes(6))
    assert http.receive(HTTP) == Ask(ASKED, None, b"")
    assert told(http, Failure.REFUSED) == "502 connection_refused: connection refused"
    neither = SESSIONS[ListenerKind.MIXED](None).receive(b"\x16\x03\x01")
    assert neither == Refuse(b"", "expected SOCKS or HTTP, got byte 0x16")


@pytest.mark.parametrize("kind", [ListenerKind.SOCKS, ListenerKind.HTTP, ListenerKind.MIXED])
def test_users_are_asked_for_by_every_kind_that_can(kind: ListenerKind) -> None:
    session = SESSIONS[kind](Users({b"ann": SaltedHash.of(b"secret")}))
    assert isinstance(session.receive(SOCKS5 if kind is ListenerKind.SOCKS else HTTP), Refuse)


def test_a_failure_that_is_no_denial_is_not_explained() -> None:
    for failure in Failure:
        command = asked_session(ListenerKind.HTTP).failed(failure, "upstream `inner`: at its limit")
        assert isinstance(command, Refuse)
        assert (b"inner" in command.reply) == (failure is Failure.DENIED)


def test_a_relay_that_speaks_no_http_does_not_load_it() -> None:
    """h11 takes 10 ms to import: a listener of its kind pays, before clients come, and nobody else."""
    script = (
        "import sys, urelay.engine.relay, urelay.engine.proxies, urelay.services.daemon\n"
        "from urelay.engine.session import SESSIONS\n"
        "for kind in ('socks', 'http', 'mixed'):\n"
        "    SESSIONS[kind](None)\n"
        "    print(kind, 'h11' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "socks False\nhttp True\nmixed True\n", done.stderr
