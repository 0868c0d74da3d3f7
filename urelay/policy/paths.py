"""Paths a policy names: files beside it, unix sockets, and the fields in a `to unix` path.

A path starts at the folder of the file it stands in (`library.beside`). A field is filled in for each
connection with nothing but `[0-9A-Za-z.:_-]`, so what a client sends cannot climb out of the folder;
here it is only made sure that every field is known and stands where it can be told apart.
"""

from __future__ import annotations

import re

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.source import Span
from urelay.net.address import printable
from urelay.net.paths import FIELDS, LONGEST
from urelay.policy.flaws import flaw
from urelay.policy.library import beside

_BRACES = re.compile(r"\{([^{}/]*)\}")
# Eight 16-bit groups of the address and the port, as five decimal digits.
_GROUPS = re.compile(r"#//(?:[0-7]|P)_")
# What would be a field if it were written right.
_SUSPECT = re.compile(r"[{}]|#//.?_?")


def read_socket_path(word: ast.Word) -> str:
    """The path of a unix socket. Raises PolicyError (UR110), also for one that is too long."""
    path = beside(word)
    length = len(path.encode())
    if length > LONGEST:
        message = f"a unix socket's path has at most {LONGEST} bytes, this has {length}"
        raise flaw("UR110", message, word.span)
    return path


def read_template(word: ast.Word) -> str:
    """The path of `to unix`, fields and all. Raises PolicyError (UR110, UR115)."""
    known = [*_BRACES.finditer(word.text), *_GROUPS.finditer(word.text)]
    for field in known:
        if field[0][0] == "{" and field[1] not in FIELDS:
            raise _unknown_field(word, field)
    inside = {at for field in known for at in range(*field.span())}
    for stray in _SUSPECT.finditer(word.text):
        if stray.start() not in inside:
            raise _unknown_field(word, stray)
    return beside(word) if known else read_socket_path(word)


def _unknown_field(word: ast.Word, field: re.Match[str]) -> PolicyError:
    known = " ".join(f"{{{name}}}" for name in FIELDS)
    message = f"unknown field {printable(field[0])} in the path; there are {known}, #//0_ to #//7_ and #//P_"
    # The quotation mark stands in front of the text.
    start = word.span.start + word.quoted + field.start()
    return flaw("UR115", message, Span(word.span.source, start, start + len(field[0])))
