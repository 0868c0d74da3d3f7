"""The logins of upstreams: read once when the relay starts, kept where no text can show them.

A policy names a variable or a file, never a login. Both hold one `user:password`; the password is
everything behind the first colon, and a SOCKS4 proxy, which knows no password, is told the user.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from urelay.errors import StartError
from urelay.policy.model import Login, Policy, Upstream, UpstreamKind

_LONGEST = 255
"""Bytes of a user or a password: RFC 1929, 2 counts them in one byte."""
_LONGEST_FILE = 4096
_FOR_OTHERS = 0o027
"""The mode bits a file with a login must not have: at most 0640, and 0700 does no harm."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user and a password as bytes (UTF-8 where they are text); shows neither."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return "<login>"


Logins: TypeAlias = Mapping[str, Credentials]
"""By the name of the upstream."""


def read_logins(policy: Policy, environ: Mapping[str, str] = os.environ) -> Logins:
    """The login of every upstream that has one.

    Raises StartError with everything that is wrong: the variable or the file, the upstream it is for
    and where that is defined.
    """
    logins: dict[str, Credentials] = {}
    wrong: list[str] = []
    for upstream in policy.upstreams.values():
        if upstream.login is not None:
            try:
                logins[upstream.name] = _credentials(upstream, _text(upstream.login, environ))
            except StartError as error:
                wrong.append(f"{upstream.origin}: upstream `{upstream.name}`: {error}")
    if wrong:
        raise StartError(*wrong)
    return logins


def _text(login: Login, environ: Mapping[str, str]) -> bytes:
    if login.env is not None:
        text = environ.get(login.env)
        if text is None:
            raise StartError(f"the variable {login.env}, which holds its login, is not set")
        return os.fsencode(text)
    return _file_text(login.file or "")


def _file_text(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _FOR_OTHERS:
                raise StartError(
                    f"{path} holds a login and its mode is {mode:04o}; make it 0640 or less (chmod 640)"
                )
            text = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise StartError(f"cannot read its login from {path}: {_reason(error)}") from None
    if len(text) > _LONGEST_FILE:
        raise StartError(f"{path} is longer than any login")
    return text.rstrip(b"\r\n")


def _credentials(upstream: Upstream, text: bytes) -> Credentials:
    # Nothing here may quote `text`: what is wrong with a secret is told by its shape alone.
    if b"\n" in text or b"\0" in text:
        raise StartError("its login is more than one line of text")
    user, colon, password = text.partition(b":")
    if not user:
        raise StartError("its login has no user; write user:password")
    if upstream.kind is not UpstreamKind.SOCKS4 and not (colon and password):
        raise StartError("its login has no password; write user:password")
    for what, part in (("user", user), ("password", password)):
        if len(part) > _LONGEST:
            raise StartError(f"the {what} of its login is {len(part)} bytes; {_LONGEST} is the most")
    return Credentials(user, password)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
