"""A users file lets in exactly whom it names, and what is wrong with it is told without its secrets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.mutations import COUNT, mutations
from urelay.errors import StartError
from urelay.services.users import parse_users, read_users

HASH = hashlib.sha256(b"saltsecret").hexdigest().encode()


def test_plain_and_hashed_passwords_let_in() -> None:
    users = parse_users(
        "users.txt", b"\xef\xbb\xbf# who may\r\n\r\nalice:open: sesame\r\nbob:sha256$salt$" + HASH + b"\n  \n"
    )
    assert len(users) == 2
    assert users.check(b"alice", b"open: sesame")
    assert users.check(b"bob", b"secret")
    assert not users.check(b"bob", b"sha256$salt$" + HASH)
    assert not users.check(b"# who may", b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"alice\n", "users.txt:1: write user:password", id="no-colon"),
        pytest.param(b"alice:\n", "users.txt:1: write user:password", id="no-password"),
        pytest.param(b":hunter2\n", "users.txt:1: write user:password", id="no-user"),
        pytest.param(b"a:b\n\na:hunter2\n", "users.txt:3: this user stands on a line above", id="twice"),
        pytest.param(b"a:sha256$hunter2\n", "users.txt:1: a hash is sha256$SALT$ and 64", id="broken-hash"),
        pytest.param(b"a:" + b"x" * 256, "users.txt:1: a password of 256 bytes", id="long-password"),
        pytest.param(b"x" * 256 + b":a", "users.txt:1: a user of 256 bytes", id="long-user"),
        pytest.param(b"# nobody\n", "users.txt: no users", id="empty"),
    ],
)
def test_what_is_wrong_is_told_by_line(text: bytes, message: str) -> None:
    with pytest.raises(StartError) as caught:
        parse_users("users.txt", text)
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


def test_every_wrong_line_is_told_at_once() -> None:
    with pytest.raises(StartError, match=r"users.txt:1: .*; users.txt:3: "):
        parse_users("users.txt", b"alice\nbob:x\ncarol\n")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes(b"alice:open sesame\n")
    path.chmod(0o640)
    assert read_users(str(path)).check(b"alice", b"open sesame")


def test_a_file_for_everybody_to_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes(b"alice:open sesame\n")
    path.chmod(0o666)
    with pytest.raises(StartError, match="everybody may write"):
        read_users(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StartError, match=r"cannot read the users in .*/nobody.txt: no such file or directory"
    ):
        read_users(str(tmp_path / "nobody.txt"))


def test_mutated_files_are_users_or_named_lines_and_never_secrets() -> None:
    """S11, S16: 100,000 seeded mutations."""
    seeds = [b"alice:open sesame\n", b"# who\nbob:sha256$salt$" + HASH + b"\n", b"a:sesame\r\nb:sesame\n"]
    read = 0
    for _, data in mutations(seeds, b":", b"\n", b"sha256$", b"x" * 256):
        try:
            users = parse_users("users.txt", data)
        except StartError as error:
            said = str(error)
        else:
            assert 0 < len(users) <= data.count(b":")
            said = repr(users)
            read += 1
        assert said.startswith(("users.txt:", "<users: "))
        assert "sesame" not in said
    assert read > COUNT / 100
