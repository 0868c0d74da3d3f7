"""Paths a policy names: files beside it, unix sockets, and the fields in a `to unix` path.

A path starts at the folder of the file it stands in (`library.beside`). A field is filled in for each
connection with nothing but `[0-9A-Za-z.:_-]`, so what a client sends cannot climb out of the folder;
here it is only made sure that every field is known and stands where it can be told apart.
"""

from __future__ import annotations

import re

from urelay.lang import ast
from urelay.net.address import printable
from urelay.policy.flaws import flaw
from urelay.policy.library import beside

FIELDS = ("address", "port", "name", "listener", "source")
"""What may stand in braces in a `to unix` path."""

LONGEST_SOCKET_PATH = 107
"""Bytes of a unix socket's path, without the NUL that Linux wants behind it (unix(7))."""

_BRACES = re.compile(r"\{([^{}/]*)\}")
# Eight 16-bit groups of the address and the port, as five decimal digits.
_GROUPS = re.compile(r"#//(?:[0-7]|P)_")


def read_socket_path(word: ast.Word) -> str:
    """The path of a unix socket. Raises PolicyError (UR110), also for one that is too long."""
    path = beside(word)
    length = len(path.encode())
    if length > LONGEST_SOCKET_PATH:
        message = f"a unix socket's path has at most {LONGEST_SOCKET_PATH} bytes, this has {length}"
        raise flaw("UR110", message, word.span)
    return path


def read_template(word: ast.Word) -> str:
    """The path of `to unix`, fields and all. Raises PolicyError (UR110, UR115)."""
    plain = _GROUPS.sub("", _BRACES.sub("", word.text))
    for field in _BRACES.findall(word.text):
        if field not in FIELDS:
            raise _unknown_field(word, f"{{{field}}}")
    stray = re.search(r"[{}]|#//.?.?", plain)
    if stray is not None:
        raise _unknown_field(word, stray[0])
    if plain == word.text:
        return read_socket_path(word)
    return beside(word)


def _unknown_field(word: ast.Word, field: str) -> Exception:
    known = " ".join(f"{{{name}}}" for name in FIELDS)
    message = f"unknown field {printable(field)} in the path; there are {known}, #//0_ to #//7_ and #//P_"
    return flaw("UR115", message, word.span)
