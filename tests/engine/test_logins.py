"""Logins come from the environment or a file, whole or not at all, and no text ever shows one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import sentinel

import pytest

from tests.mutations import COUNT, mutations
from urelay.engine.logins import Credentials, read_logins
from urelay.errors import StartError
from urelay.lang.source import Origin
from urelay.net.address import parse_endpoint
from urelay.policy.model import Login, Policy, Setting, Upstream, UpstreamKind

ORIGIN = Origin("x.urr", 1, "upstream …")


def upstream(
    name: str, login: Login | None, kind: UpstreamKind = UpstreamKind.SOCKS5, **options: object
) -> Upstream:
    """An upstream with a login and any other options."""
    settings = {option: Setting(value, ORIGIN) for option, value in options.items()}
    if login is not None:
        settings["login"] = Setting(login, ORIGIN)
    return Upstream(name, kind, parse_endpoint("192.0.2.1:1080"), (), settings, ORIGIN, sentinel.node)


def policy(*upstreams: Upstream) -> Policy:
    """A policy of upstreams and nothing else."""
    return Policy("x.urr", "digest", (), (), {u.name: u for u in upstreams}, {}, {}, {"main": ()}, (), (), ())


def read(login: Login, environ: Mapping[str, str], kind: UpstreamKind = UpstreamKind.SOCKS5) -> Credentials:
    """The login of one upstream called corp."""
    return read_logins(policy(upstream("corp", login, kind), upstream("wg", None)), environ)["corp"]


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        pytest.param("alice:open sesame", b"alice", b"open sesame", id="plain"),
        pytest.param("alice:a:b:c", b"alice", b"a:b:c", id="colons"),
        pytest.param("zoë:pässword", "zoë".encode(), "pässword".encode(), id="utf-8"),
        pytest.param("x" * 255 + ":" + "y" * 255, b"x" * 255, b"y" * 255, id="longest"),
    ],
)
def test_a_login_is_read_from_variable_and_file(
    tmp_path: Path, text: str, user: bytes, password: bytes
) -> None:
    path = tmp_path / "login"
    path.write_text(text + "\n", "utf-8")
    path.chmod(0o600)
    for got in (read(Login(env="LOGIN"), {"LOGIN": text}), read(Login(file=str(path)), {})):
        assert (got.user, got.password) == (user, password)


def test_a_socks4_login_may_be_a_user_alone() -> None:
    assert read(Login(env="L"), {"L": "alice"}, UpstreamKind.SOCKS4).user == b"alice"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param({}, "the variable LOGIN, which holds its login, is not set", id="unset"),
        pytest.param({"LOGIN": ""}, "its login has no user", id="empty"),
        pytest.param({"LOGIN": ":hunter2"}, "its login has no user", id="no-user"),
        pytest.param({"LOGIN": "hunter2"}, "its login has no password", id="no-password"),
        pytest.param({"LOGIN": "hunter2:"}, "its login has no password", id="empty-password"),
        pytest.param({"LOGIN": "a:hunter2\nb"}, "its login is more than one line", id="lines"),
        pytest.param({"LOGIN": "hunter2" * 40 + ":a"}, "the user of its login is 280 bytes", id="long-user"),
        pytest.param(
            {"LOGIN": "a:" + "ä" * 128}, "the password of its login is 256 bytes", id="long-password"
        ),
    ],
)
def test_a_login_that_will_not_do_is_named_with_its_upstream(environ: dict[str, str], message: str) -> None:
    with pytest.raises(StartError) as caught:
        read(Login(env="LOGIN"), environ)
    assert str(caught.value).startswith(f"x.urr:1: upstream `corp`: {message}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o642])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "login"
    path.write_text("alice:hunter2")
    path.chmod(mode)
    with pytest.raises(StartError, match=f"its mode is {mode:04o}; make it 0640 or less"):
        read(Login(file=str(path)), {})
    path.chmod(0o640)
    assert read(Login(file=str(path)), {}).user == b"alice"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot read its login from .*/none: no such file or directory"):
        read(Login(file=str(tmp_path / "none")), {})


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(StartError) as caught:
        read_logins(policy(upstream("a", Login(env="A")), upstream("b", Login(env="B"))), {})
    assert caught.value.problems == (
        "x.urr:1: upstream `a`: the variable A, which holds its login, is not set",
        "x.urr:1: upstream `b`: the variable B, which holds its login, is not set",
    )


def test_no_text_shows_a_login() -> None:
    login = Credentials(b"alice", b"hunter2")
    for text in (repr(login), str(login), f"{login!r:>20}", repr([login]), f"{login}"):
        assert "hunter2" not in text
        assert "alice" not in text


def test_mutated_logins_are_whole_or_refused_and_never_shown() -> None:
    """S11, S16: 100,000 seeded mutations."""
    one = policy(upstream("corp", Login(env="LOGIN")))
    whole = 0
    for _, data in mutations([b"alice:hunter2", "zoë:hunter2 ü".encode()], b":", b"\n", b"x" * 256):
        try:
            got = read_logins(one, {"LOGIN": os.fsdecode(data)})["corp"]
        except StartError as error:
            said = str(error)
        else:
            assert got.user + b":" + got.password == data
            said = repr(got)
            whole += 1
        assert said == "<login>" or said.startswith("x.urr:1: upstream `corp`: ")
        assert "hunter2" not in said
    assert whole > COUNT / 100
