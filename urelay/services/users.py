"""The users of a listener, read from a file: a line a user, blank lines and `#` comments aside.

    alice:open sesame
    bob:sha256$k3Wq$5e88…

The password is everything behind the first colon. `sha256$SALT$HEX` is the SHA-256 of the salt and
the password, one behind the other: `printf %s 'k3Wqthe password' | sha256sum` makes the HEX. It is a
fast hash, so such passwords should be long and random (urelay.protocols.users says why).
"""

from __future__ import annotations

import os
import re
import stat

from urelay.errors import StartError
from urelay.net.address import printable
from urelay.protocols.users import SaltedHash, Users

_LONGEST = 255
"""Bytes of a user or a password: RFC 1929, 2 counts them in one byte."""
_LARGEST_FILE = 4 << 20
_HASHED = b"sha256$"
_HASH = re.compile(rb"sha256\$([^$]*)\$([0-9A-Fa-f]{64})")


def read_users(path: str) -> Users:
    """The users in the file at `path`.

    Raises StartError, which names the file and every line that is wrong, and never what stands in
    one. A file that everybody may write is refused: everybody could let themselves in.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise StartError(f"{path}: everybody may write to this file (chmod o-w)")
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise StartError(f"cannot read the users in {printable(path)}: {reason}") from None
    if len(text) > _LARGEST_FILE:
        raise StartError(f"{path}: more than {_LARGEST_FILE >> 20} MiB of users")
    return parse_users(path, text)


def parse_users(path: str, text: bytes) -> Users:
    """The users in `text`; `path` is for messages. Raises StartError."""
    hashes: dict[bytes, SaltedHash] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            user, stored = _entry(line)
        except StartError as error:
            wrong.append(f"{path}:{number}: {error}")
            continue
        if user in hashes:
            wrong.append(f"{path}:{number}: this user stands on a line above")
        hashes[user] = stored
    if wrong:
        raise StartError("; ".join(wrong))
    if not hashes:
        raise StartError(f"{path}: no users, so nobody could log in")
    return Users(hashes)


def _entry(line: bytes) -> tuple[bytes, SaltedHash]:
    user, colon, password = line.partition(b":")
    if not (user and colon and password):
        raise StartError("write user:password")
    if len(user) > _LONGEST:
        raise StartError(f"a user of {len(user)} bytes; {_LONGEST} is the most")
    if password.startswith(_HASHED):
        match = _HASH.fullmatch(password)
        if match is None:
            raise StartError("a hash is sha256$SALT$ and 64 hexadecimal digits")
        return user, SaltedHash(match[1], bytes.fromhex(match[2].decode("ascii")))
    if len(password) > _LONGEST:
        raise StartError(f"a password of {len(password)} bytes; {_LONGEST} is the most")
    return user, SaltedHash.of(password)
