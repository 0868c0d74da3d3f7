"""A login is checked by what is right, in a time that does not tell what is wrong."""

from __future__ import annotations

import statistics
import time

import pytest

from urelay.protocols.users import SaltedHash, Users

USERS = Users({b"alice": SaltedHash.of(b"open sesame"), "zoë".encode(): SaltedHash.of("pässword".encode())})


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        pytest.param(b"alice", b"open sesame", True, id="right"),
        pytest.param("zoë".encode(), "pässword".encode(), True, id="utf-8"),
        pytest.param(b"alice", b"open sesam", False, id="a-prefix-of-the-password"),
        pytest.param(b"alice", b"open sesame\0", False, id="more-than-the-password"),
        pytest.param(b"alice", b"", False, id="no-password"),
        pytest.param(b"alic", b"open sesame", False, id="a-prefix-of-the-user"),
        pytest.param(b"Alice", b"open sesame", False, id="case"),
        pytest.param(b"bob", b"open sesame", False, id="unknown-user"),
        pytest.param(b"", b"", False, id="nothing"),
    ],
)
def test_only_the_right_pair_passes(user: bytes, password: bytes, right: bool) -> None:
    assert USERS.check(user, password) is right


def test_one_users_password_does_not_open_anothers() -> None:
    assert not USERS.check(b"alice", "pässword".encode())


def test_the_repr_holds_no_user_and_no_password() -> None:
    assert repr(USERS) == "<users: 2>"


def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    """Medians of interleaved rounds within a fifth of each other, in the best of a few tries."""

    def once(user: bytes) -> float:
        start = time.perf_counter_ns()
        USERS.check(user, b"wrong password")
        return time.perf_counter_ns() - start

    for _ in range(5):
        known, unknown = [], []
        for _ in range(5_000):
            known.append(once(b"alice"))
            unknown.append(once(b"nobody"))
        ratio = statistics.median(known) / statistics.median(unknown)
        if 0.83 < ratio < 1.2:
            return
    pytest.fail(f"a wrong password takes {ratio:.2f} times as long as an unknown user")
