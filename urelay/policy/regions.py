"""Which connections: the left side of `match`, `forbid` and `expect`, and a question to `explain`.

One syntax, read by one class; what differs is said once, in `Reading`. A route may not hold a port in
its destination (`10.1.2.3:80`) nor name a table; an expectation and a question may do both, and a
question spells hosts as a client would, since it asks about what clients send.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from urelay.errors import AddressError
from urelay.lang import ast
from urelay.lang.source import Span
from urelay.net.address import Prefix, host_prefix, parse_host, printable
from urelay.policy.flaws import flaw, read_word
from urelay.policy.model import Destinations, NameKind, NamePattern, PortRange, Region
from urelay.policy.scope import Scope
from urelay.policy.sets import Contents
from urelay.policy.words import WordError, read_element, read_ports, split_endpoint

T = TypeVar("T")


class Reading(enum.Enum):
    """Whose region it is, as the keyword in front of it."""

    MATCH = "match"
    FORBID = "forbid"
    EXPECT = "expect"
    QUESTION = "explain"

    @property
    def rules(self) -> bool:
        """Whether it decides connections, rather than asking about them."""
        return self in (Reading.MATCH, Reading.FORBID)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A region, and the table it names, which only expectations and questions may."""

    region: Region
    table: str | None


def resolve_region(node: ast.Region, scope: Scope, reading: Reading) -> Resolved:
    """The meaning of a region. Raises PolicyError: the first thing wrong with it."""
    clauses = _by_keyword(node)
    destinations, port = _destinations(node.destination, scope, reading)
    ports: tuple[PortRange, ...] | None = None if port is None else (port,)
    if "port" in clauses:
        if port is not None:
            raise flaw("UR102", "the port is said twice", clauses["port"].span)
        ports = _unless_any(clauses["port"].value, lambda value: tuple(scope.sets.of_ports(value)))
    sources = listeners = table = None
    if "from" in clauses:
        sources = _unless_any(
            clauses["from"].value, lambda value: tuple(scope.sets.of_prefixes(value, "from"))
        )
    if "on" in clauses:
        listeners = _unless_any(clauses["on"].value, lambda value: _listeners(value, scope))
    if "table" in clauses:
        table = _table(clauses["table"], scope, reading)
    return Resolved(Region(destinations, ports, sources, listeners), table)


def _by_keyword(node: ast.Region) -> dict[str, ast.Clause]:
    clauses: dict[str, ast.Clause] = {}
    for clause in node.clauses:
        if clause.keyword.text in clauses:
            help_text = f"several go in braces: {clause.keyword.text} {{ …, … }}"
            raise flaw("UR102", f"`{clause.keyword.text}` is said twice", clause.span, help_text)
        clauses[clause.keyword.text] = clause
    return clauses


def is_any(value: ast.Value) -> bool:
    """Whether a value is the bare word `any`."""
    return isinstance(value, ast.Word) and value.text == "any" and not value.quoted


def _unless_any(value: ast.Value, read: Callable[[ast.Value], T]) -> T | None:
    return None if is_any(value) else read(value)


def _destinations(
    value: ast.Value, scope: Scope, reading: Reading
) -> tuple[Destinations | None, PortRange | None]:
    if is_any(value):
        return None, None
    if isinstance(value, ast.Word) and not reading.rules:
        element, port = _host_and_port(value, reading)
        contents = Contents()
        contents.add_element(element)
        return contents.destinations(), port
    return scope.sets.of_addresses(value, reading.value).destinations(), None


def _host_and_port(word: ast.Word, reading: Reading) -> tuple[Prefix | NamePattern, PortRange | None]:
    split = split_endpoint(word.text)
    if split is None:
        return read_word(word, lambda text: _host(text, word.quoted or reading is Reading.QUESTION)), None
    host, port = split
    if host == "any":
        raise flaw("UR105", f"`{printable(word.text)}` is not a host", word.span, f"write `any port {port}`")
    # With a port behind it, a single label is plainly a host name.
    return read_word(word, lambda _: _host(host, quoted=True)), read_word(word, lambda _: read_ports(port))


def _host(text: str, quoted: bool) -> Prefix | NamePattern:
    """A host as a client may spell it, or a prefix or a pattern."""
    if quoted and "/" not in text and not text.startswith((".", "*")):
        try:
            host = parse_host(text)
        except AddressError as error:
            raise WordError("UR105", str(error)) from None
        return NamePattern(NameKind.EXACT, host) if isinstance(host, str) else host_prefix(host)
    return read_element(text, quoted=quoted)


def _listeners(value: ast.Value, scope: Scope) -> frozenset[str]:
    items = value.items if isinstance(value, ast.Braces) else (value,)
    return frozenset(_listener(item, scope) for item in items)


def _listener(item: ast.Value, scope: Scope) -> str:
    if isinstance(item, ast.Word):
        return scope.listener(item)
    raise _needs_word(item.span, "on", "names of listeners")


def _table(clause: ast.Clause, scope: Scope, reading: Reading) -> str:
    if reading.rules:
        message = "a route or a wall has no `table`: it belongs to the block it stands in"
        raise flaw("UR001", message, clause.span, "write `table NAME { … }` around it")
    if not isinstance(clause.value, ast.Word):
        raise _needs_word(clause.value.span, "table", "the name of a table")
    return scope.table(clause.value, uses=False)


def _needs_word(span: Span, keyword: str, what: str) -> Exception:
    return flaw("UR103", f"`{keyword}` needs {what}", span)
