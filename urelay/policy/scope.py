"""The names a policy defines and who uses them: upstreams, listeners, tables, beside the sets.

Names are collected from every file before any of them is resolved, so their order does not matter.
Asking for a name marks it as used; what nobody asked for is UR116.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.net.address import printable
from urelay.policy.flaws import Doubts, Findings, reported, unknown
from urelay.policy.library import Library
from urelay.policy.model import MAIN, Upstream
from urelay.policy.sets import Sets, twice

Named = TypeVar("Named", ast.UpstreamDef, ast.ListenDef, ast.DnsDef, ast.TableDef)


@dataclass(slots=True)
class Scope:
    """Everything a statement may name."""

    findings: Findings
    doubts: Doubts
    sets: Sets
    upstreams: Mapping[str, ast.UpstreamDef]
    listeners: Mapping[str, ast.ListenDef]
    services: Mapping[str, ast.DnsDef]
    tables: Mapping[str, ast.TableDef]
    inline: dict[str, Upstream] = field(default_factory=dict)
    """Upstreams written inside a route: `via socks5 10.0.0.8:1080`"""
    used_upstreams: set[str] = field(default_factory=set)
    used_tables: set[str] = field(default_factory=set)

    def upstream(self, word: ast.Word) -> str:
        """The name of a defined upstream; raises UR101."""
        if word.text not in self.upstreams:
            raise self._unknown("upstream", "upstream", word, self.upstreams)
        self.used_upstreams.add(word.text)
        return word.text

    def listener(self, word: ast.Word) -> str:
        """The name of a defined listener; raises UR101."""
        if word.text not in self.listeners:
            raise self._unknown("listener", "listen", word, self.listeners)
        return word.text

    def table(self, word: ast.Word, *, uses: bool = True) -> str:
        """The name of a table; `main` always exists. Raises UR101.

        An expectation speaks of a table without putting a connection there: `uses` is False then.
        """
        if word.text != MAIN and word.text not in self.tables:
            raise self._unknown("table", "table", word, [MAIN, *self.tables])
        if uses:
            self.used_tables.add(word.text)
        return word.text

    def report_unused(self) -> None:
        """Add UR116 for every set, upstream and table nothing asked for."""
        for node in self.sets.unused():
            self._unused("set", node.name)
        for name, upstream in self.upstreams.items():
            if name not in self.used_upstreams:
                self._unused("upstream", upstream.name)
        for name, table in self.tables.items():
            if name != MAIN and name not in self.used_tables:
                message = f'no listener and no lookup uses table "{printable(name)}"'
                self.findings.add("UR116", message, table.name.span)

    def _unknown(self, what: str, keyword: str, word: ast.Word, known: Iterable[str]) -> PolicyError:
        if self.doubts.cover(keyword, word.text):
            return reported()
        return unknown(what, word.text, word.span, known)

    def _unused(self, what: str, name: ast.Word) -> None:
        self.findings.add("UR116", f'nothing uses {what} "{printable(name.text)}"', name.span)


def collect(documents: Sequence[ast.Document], library: Library, findings: Findings) -> Scope:
    """The scope of all statements of `documents`; a second definition of a name is UR102."""
    sets: list[ast.SetDef] = []
    upstreams: dict[str, ast.UpstreamDef] = {}
    listeners: dict[str, ast.ListenDef] = {}
    services: dict[str, ast.DnsDef] = {}
    tables: dict[str, ast.TableDef] = {}
    for document in documents:
        for node in document.statements:
            match node:
                case ast.SetDef():
                    sets.append(node)
                case ast.UpstreamDef():
                    _define("upstream", node, upstreams, findings)
                case ast.ListenDef():
                    _define("listener", node, listeners, findings)
                case ast.DnsDef():
                    _define("dns service", node, services, findings)
                case ast.TableDef():
                    _define("table", node, tables, findings)
    texts = [document.source.text for document in documents] if findings.failed else []
    doubts = Doubts(texts, everything=library.incomplete)
    return Scope(
        findings, doubts, Sets(sets, library, findings, doubts), upstreams, listeners, services, tables
    )


def _define(what: str, node: Named, known: dict[str, Named], findings: Findings) -> None:
    first = known.setdefault(node.name.text, node)
    if first is not node:
        findings.keep(twice(what, node.name, first.name))
