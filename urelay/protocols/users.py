"""Who may log in to a listener: the check behind RFC 1929, and nothing about files.

A check must not tell by its duration whether a user exists. So every user has a salted hash,
unknown ones too (a random one made at start), users are found by a keyed hash of their name, and one
check is always the same work: one keyed hash, one look-up, one SHA-256, one constant-time
comparison. The hash is fast on purpose: it runs in the relay's loop for every connection, where a
slow one would let anybody stall everybody. Long random passwords make up for that.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import NamedTuple


class SaltedHash(NamedTuple):
    """SHA-256 over the salt followed by the password."""

    salt: bytes
    digest: bytes
    """32 bytes"""

    @classmethod
    def of(cls, password: bytes) -> SaltedHash:
        """The hash of a password under a fresh salt."""
        salt = secrets.token_bytes(16)
        return cls(salt, hashlib.sha256(salt + password).digest())


class Users:
    """The users of one listener. Its repr tells how many there are and nothing else."""

    __slots__ = ("_by_name", "_key", "_nobody")

    def __init__(self, hashes: Mapping[bytes, SaltedHash]) -> None:
        self._key = secrets.token_bytes(32)
        self._nobody = SaltedHash(secrets.token_bytes(16), secrets.token_bytes(32))
        self._by_name = {self._blind(user): stored for user, stored in hashes.items()}

    def __repr__(self) -> str:
        return f"<users: {len(self._by_name)}>"

    def __len__(self) -> int:
        return len(self._by_name)

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether `password` is that of `user`; takes the same time whatever is wrong."""
        stored = self._by_name.get(self._blind(user), self._nobody)
        offered = hashlib.sha256(stored.salt + password).digest()
        return hmac.compare_digest(offered, stored.digest)

    def _blind(self, user: bytes) -> bytes:
        return hashlib.blake2b(user, key=self._key, digest_size=16).digest()
