"""Conversations: what a client is told, in which order, whatever the policy and the way out say."""

from __future__ import annotations

import pytest

from urelay.engine.session import (
    DIAL,
    DIRECT_SESSION,
    HAND_OVER,
    HOLD,
    RESET,
    Ask,
    HandOver,
    Refuse,
    Reply,
    SocksSession,
)
from urelay.errors import Failure
from urelay.net.address import Endpoint
from urelay.policy.model import DenyHow, Outcome
from urelay.table.decision import Decision


def decision(outcome: Outcome, how: DenyHow = DenyHow.DEFAULT) -> Decision:
    return Decision(outcome, "main", "digest", deny_how=how)


SOCKS5 = b"\5\1\0\5\1\0\1\x0a\1\2\3\0\x50"
ASKED = Endpoint(bytes((10, 1, 2, 3)), 80)


def asked_session() -> SocksSession:
    session = SocksSession(None)
    assert session.receive(SOCKS5) == Ask(ASKED, None, b"\5\0")
    return session


@pytest.mark.parametrize("outcome", [Outcome.DIRECT, Outcome.VIA, Outcome.UNIX])
def test_what_is_let_through_is_dialled(outcome: Outcome) -> None:
    assert DIRECT_SESSION.decided(decision(outcome)) is DIAL
    assert asked_session().decided(decision(outcome)) is DIAL


def test_silence_is_held() -> None:
    assert DIRECT_SESSION.decided(decision(Outcome.SILENT)) is HOLD
    assert asked_session().decided(decision(Outcome.SILENT)) is HOLD


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
    session = SocksSession(None)
    commands = [session.receive(bytes((byte,))) for byte in SOCKS5]
    assert [command for command in commands if command != Reply(b"")] == [
        Reply(b"\5\0"),
        Ask(ASKED, None, b""),
    ]


def test_pipelined_bytes_come_first_and_the_reply_tells_our_end() -> None:
    session = SocksSession(None)
    assert isinstance(session.receive(SOCKS5 + b"GET /"), Ask)
    bound = Endpoint(bytes((192, 0, 2, 9)), 0x1234)
    command = session.dialed(bound)
    assert command == HandOver(b"\5\0\0\1\xc0\0\2\x09\x12\x34", b"GET /")


def test_a_transparent_client_is_handed_over_without_a_word() -> None:
    assert DIRECT_SESSION.dialed(None) is HAND_OVER
    assert not DIRECT_SESSION.tells_bound


def test_a_broken_handshake_is_refused_with_what_is_owed() -> None:
    command = SocksSession(None).receive(b"\5\1\0\5\2\0\1\x0a\1\2\3\0\x50")
    assert command == Refuse(b"\5\0\5\7\0\1" + bytes(6), "command 2 is not CONNECT")
