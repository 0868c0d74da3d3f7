"""Sets: what `@private` stands for.

A set holds addresses and names, or ports; the kind is inferred from its elements. Definitions are
resolved when first asked for, so their order does not matter and a set that contains itself is found
by meeting it again on the way down (UR107). What is broken is told once, at the definition; whoever
uses the set then gets `reported()`.

Large lists are files of one name or prefix a line. They never pass through the parser, and their text
is not kept: of a million prefixes only the million values remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.diagnostics import Label
from urelay.lang.source import Source, Span
from urelay.net.address import Prefix, printable
from urelay.policy.flaws import Doubts, Findings, flaw, read_word, reported, unknown
from urelay.policy.library import Library, beside
from urelay.policy.model import Destinations, NamePattern, PortRange
from urelay.policy.words import (
    WordError,
    looks_like_ports,
    quick_prefix,
    read_element,
    read_ports,
)


@dataclass(slots=True)
class Contents:
    """What a set or a braced list holds: of prefixes, names and ports in the order written."""

    prefixes: list[Prefix] = field(default_factory=list)
    names: list[NamePattern] = field(default_factory=list)
    ports: list[PortRange] = field(default_factory=list)
    _final: Destinations | None = None

    @property
    def holds_ports(self) -> bool:
        """Whether it is a set of ports; an empty set is of either kind."""
        return bool(self.ports)

    @property
    def holds_addresses(self) -> bool:
        """Whether it is a set of addresses and names; an empty set is of either kind."""
        return bool(self.prefixes or self.names)

    @property
    def mixed(self) -> bool:
        """Whether it is both, which no set may be."""
        return self.holds_ports and self.holds_addresses

    def extend(self, other: Contents) -> None:
        """Add everything `other` holds."""
        self.prefixes.extend(other.prefixes)
        self.names.extend(other.names)
        self.ports.extend(other.ports)

    def add_element(self, element: Prefix | NamePattern) -> None:
        """Add one prefix or name."""
        if isinstance(element, Prefix):
            self.prefixes.append(element)
        else:
            self.names.append(element)

    def destinations(self) -> Destinations:
        """The addresses and names, as the model keeps them: one value for all who use the set.

        Nothing may be added afterwards.
        """
        if self._final is None:
            self._final = Destinations(tuple(self.prefixes), tuple(self.names))
        return self._final


_DEEPEST = 64
"""How many sets may stand inside each other."""

_MOST_ELEMENTS = 8_000_000
"""How many elements all lists and nestings may copy together: sets that double each other are no use."""


class Sets:
    """Every set of a policy, by name."""

    def __init__(
        self, definitions: Iterable[ast.SetDef], library: Library, findings: Findings, doubts: Doubts
    ) -> None:
        self._doubts = doubts
        self._library = library
        self._findings = findings
        self._definitions: dict[str, ast.SetDef] = {}
        self._resolved: dict[str, Contents | None] = {}
        self._lists: dict[str, Contents] = {}
        self._open: list[str] = []
        self._room = _MOST_ELEMENTS
        self._used: set[str] = set()
        for definition in definitions:
            self._define(definition)

    def resolve_all(self) -> None:
        """Resolve every set, used or not, so that everything wrong with them is found."""
        for name in self._definitions:
            self._resolve(name)

    def unused(self) -> list[ast.SetDef]:
        """The definitions that nothing has asked for by `contents`."""
        return [node for name, node in self._definitions.items() if name not in self._used]

    def contents(self, use: ast.SetName) -> Contents:
        """What the set holds; raises UR101, or `reported()` when its definition is broken."""
        if use.name not in self._definitions:
            if self._doubts.cover("set", use.name):
                raise reported()
            raise unknown("set", use.name, use.span, self._definitions)
        self._used.add(use.name)
        contents = self._resolve(use.name)
        if contents is None:
            raise reported()
        return contents

    def of_addresses(self, value: ast.Value, purpose: str) -> Contents:
        """The addresses and names `value` stands for; raises UR103 when it holds ports.

        `purpose` is the keyword whose value this is, for the message.
        """
        return self._of_addresses(value, purpose, "addresses or names")

    def of_prefixes(self, value: ast.Value, purpose: str) -> list[Prefix]:
        """The prefixes `value` stands for; raises UR103 when it holds ports or names."""
        contents = self._of_addresses(value, purpose, "addresses")
        if contents.names:
            raise _wrong_kind(value, "names", purpose, "addresses")
        return contents.prefixes

    def of_ports(self, value: ast.Value) -> list[PortRange]:
        """The port ranges `value` stands for; raises UR103 when it holds addresses or names."""
        contents = self._of_value(value, ports=True)
        if contents.holds_addresses:
            raise _wrong_kind(value, "addresses or names", "port", "ports")
        return contents.ports

    def _of_addresses(self, value: ast.Value, purpose: str, needed: str) -> Contents:
        contents = self._of_value(value, ports=False)
        if contents.holds_ports:
            raise _wrong_kind(value, "ports", purpose, needed)
        return contents

    def _define(self, node: ast.SetDef) -> None:
        first = self._definitions.setdefault(node.name.text, node)
        if first is not node:
            self._findings.keep(twice("set", node.name, first.name))

    def _resolve(self, name: str) -> Contents | None:
        if name in self._resolved:
            return self._resolved[name]
        node = self._definitions[name]
        if name in self._open:
            raise flaw("UR107", f'set "{name}" contains itself', node.name.span, note=self._path_to(name))
        if len(self._open) == _DEEPEST:
            raise flaw("UR107", f"sets stand more than {_DEEPEST} deep in each other", node.name.span)
        self._open.append(name)
        contents = None
        try:
            contents = self._of_definition(node)
        except PolicyError as error:
            self._findings.keep(error)
        finally:
            self._open.pop()
            self._resolved[name] = contents
        return contents

    def _path_to(self, name: str) -> str:
        path = [*self._open[self._open.index(name) :], name]
        return " contains ".join(f"@{member}" for member in path)

    def _of_definition(self, node: ast.SetDef) -> Contents:
        contents = self._of_value(node.value, ports=None)
        if contents.mixed:
            message = f'set "{node.name.text}" holds ports and addresses; a set holds one kind'
            raise flaw("UR103", message, node.name.span)
        if not (contents.holds_ports or contents.holds_addresses):
            what = node.value.path.text if isinstance(node.value, ast.FileItem) else f"@{node.name.text}"
            message = f"{printable(what)} is empty, so a route over it never matches"
            self._findings.add("UR117", message, node.value.span)
        return contents

    def _of_value(self, value: ast.Value, *, ports: bool | None) -> Contents:
        """`ports` is the kind that is needed; None in a definition, where it is inferred."""
        items: Sequence[ast.Item] = value.items if isinstance(value, ast.Braces) else (value,)
        match items:
            # Shared, not copied: nobody changes what another set holds.
            case [ast.SetName() as only]:
                return self.contents(only)
            case [ast.FileItem() as only]:
                return self._list(only)
        contents = Contents()
        for item in items:
            match item:
                case ast.SetName():
                    self._copy(self.contents(item), contents, item.span)
                case ast.FileItem():
                    self._copy(self._list(item), contents, item.span)
                case ast.Word():
                    self._add_word(item, contents, ports)
        return contents

    def _add_word(self, word: ast.Word, contents: Contents, ports: bool | None) -> None:
        if not word.quoted and word.text == "any":
            raise flaw("UR105", "`any` is everything: it stands alone, not in braces or a set", word.span)
        counts_as_ports = not word.quoted and looks_like_ports(word.text)
        if counts_as_ports if ports is None else ports and (counts_as_ports or not _is_element(word)):
            contents.ports.append(read_word(word, read_ports))
        elif ports is False and counts_as_ports:
            message = f"`{word.text}` is a port; an address or a name is needed"
            raise flaw("UR103", message, word.span, f"write `port {word.text}`")
        else:
            contents.add_element(read_word(word, lambda text: read_element(text, quoted=word.quoted)))

    def _copy(self, part: Contents, into: Contents, span: Span) -> None:
        self._room -= len(part.prefixes) + len(part.names) + len(part.ports)
        if self._room < 0:
            raise flaw("UR108", f"sets that contain sets hold more than {_MOST_ELEMENTS:,} elements", span)
        into.extend(part)

    def _list(self, item: ast.FileItem) -> Contents:
        path = beside(item.path)
        if path not in self._lists:
            self._lists[path] = self._read_list(item, path)
        return self._lists[path]

    def _read_list(self, item: ast.FileItem, path: str) -> Contents:
        """A list's lines. The first bad one is the error; how many more there are is told."""
        contents = Contents()
        first: tuple[int, str, WordError] | None = None
        bad = 0
        for number, line in enumerate(self._library.read_list(item.path).split("\n"), 1):
            if line.startswith("#"):
                continue  # before anybody takes a colon in it for an IPv6 address
            # The common line is a prefix and nothing else: one call, no exception, no copies.
            prefix = quick_prefix(line)
            if prefix is not None:
                contents.prefixes.append(prefix)
                continue
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            try:
                contents.add_element(_read_entry(entry))
            except WordError as error:
                first = first or (number, line, error)
                bad += 1
        if first is not None:
            raise _bad_line(item, path, *first, more=bad - 1)
        return contents


def _is_element(word: ast.Word) -> bool:
    try:
        read_element(word.text, quoted=word.quoted)
    except WordError:
        return False
    return True


def _read_entry(entry: str) -> Prefix | NamePattern:
    if entry[0] == entry[-1] == '"' and len(entry) > 2:
        return read_element(entry[1:-1], quoted=True)
    if len(entry.split()) > 1:
        raise WordError("UR105", f"`{printable(entry)}` is more than one name or prefix a line")
    return read_element(entry)


def _bad_line(
    item: ast.FileItem, path: str, number: int, line: str, error: WordError, more: int
) -> PolicyError:
    # The list has a source of its own for one line only: the renderer shows that line, and a million
    # others are not indexed for it.
    source = Source(path, "\n" * (number - 1) + line + "\n", tuple(range(number)))
    start = number - 1 + len(line) - len(line.lstrip())
    entry = line.partition("#")[0].strip()
    note = None
    if more:
        others = "1 more line" if more == 1 else f"{more:,} more lines"
        note = f"{others} of {path} cannot be read either"
    named = Label(item.span, "named here")
    return flaw(
        error.code, error.message, Span(source, start, start + len(entry)), error.help_text, named, note=note
    )


def _wrong_kind(value: ast.Value, holds: str, purpose: str, needed: str) -> PolicyError:
    shown = f"@{value.name}" if isinstance(value, ast.SetName) else "this"
    return flaw("UR103", f"{shown} holds {holds}; `{purpose}` needs {needed}", value.span)


def twice(what: str, second: ast.Word, first: ast.Word) -> PolicyError:
    """UR102: a name defined twice; the second definition is the error, the first is drawn too."""
    message = f'{what} "{printable(second.text)}" is defined twice'
    return flaw("UR102", message, second.span, None, Label(first.span, "first here"))
