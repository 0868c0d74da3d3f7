"""The files of a policy: the one that was named, what it includes, and the lists its sets read.

Every file is read once, however often and by whatever spelling it is reached. A path stands in the
file that names it and starts at that file's folder; it is shown as it was reached from the spelling
the user gave (`rules/site.urr` includes "common/x.urr": `rules/common/x.urr`), never made absolute.

The digest covers the content of every file and the place it was found relative to the first, in an
order of its own: neither the order of includes nor the folder the policy lies in changes it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.diagnostics import Label, diagnostic
from urelay.lang.parser import parse
from urelay.lang.source import Source, Span
from urelay.net.address import printable
from urelay.policy.flaws import Findings, flaw

_DEEPEST = 64
"""How many includes may stand inside each other: far more than anybody can follow."""

_WILD = "*?["


class Library:
    """Reads files for one check; `documents` and `digest()` are complete once the sets are resolved."""

    def __init__(self, findings: Findings) -> None:
        self.documents: list[ast.Document] = []
        self.incomplete = False
        """Whether a file could not be read, so that anything may be defined in it"""
        self._findings = findings
        self._main_folder = ""
        self._hashes: dict[str, bytes] = {}
        self._open: list[str] = []

    def load(self, path: str) -> None:
        """Read and parse the file at `path` and everything it includes; findings tell what failed."""
        if "\0" not in path:  # else reading it is what fails
            self._main_folder = os.path.dirname(os.path.realpath(path))
        with self._findings.one_statement():
            self._load(path, None)

    def add(self, source: Source) -> ast.Document:
        """Parse a source that belongs to the policy without being included: the guard."""
        # The colon keeps it apart from a file of the user's that has the same name.
        self._hashes[f":{source.path}"] = hashlib.sha256(source.text.encode()).digest()
        document, diagnostics = parse(source)
        self._findings.found.extend(diagnostics)
        return document

    def read_list(self, path: ast.Word) -> str:
        """The text of a list, with `\\n` line ends. Raises PolicyError (UR401)."""
        text = self._read(beside(path), path.span).removeprefix("\ufeff")
        return text.replace("\r\n", "\n") if "\r" in text else text

    def digest(self) -> str:
        """Hex SHA-256 over every file read so far."""
        whole = hashlib.sha256()
        for name, content in sorted(self._hashes.items()):
            whole.update(f"{len(name.encode())}:{name}".encode() + content)
        return whole.hexdigest()

    def _load(self, path: str, named: Span | None) -> None:
        try:
            text = self._read(path, named)
        except PolicyError:
            self.incomplete = True
            raise
        document, diagnostics = parse(Source.from_text(path, text))
        self.documents.append(document)
        self._findings.found.extend(diagnostics)
        self._open.append(os.path.realpath(path))
        for statement in document.statements:
            if isinstance(statement, ast.Include):
                with self._findings.one_statement():
                    self._include(statement)
        self._open.pop()

    def _include(self, node: ast.Include) -> None:
        spelled = beside(node.path)
        if any(character in node.path.text for character in _WILD):
            # A folder that may be empty, so no match is no error; and the file that holds the pattern
            # may lie in it.
            paths = [path for path in sorted(glob.glob(spelled)) if os.path.realpath(path) not in self._open]
        else:
            paths = [spelled]
        for path in paths:
            real = os.path.realpath(path)
            if real in self._open:
                files = [*self._open[self._open.index(real) :], real]
                loop = " includes ".join(os.path.basename(file) for file in files)
                raise flaw("UR107", f"{printable(path)} includes itself", node.span, note=loop)
            if len(self._open) > _DEEPEST:
                raise flaw("UR107", f"includes stand more than {_DEEPEST} deep in each other", node.span)
            if self._name(real) not in self._hashes:
                with self._findings.one_statement():
                    self._load(path, node.path.span)

    def _read(self, path: str, named: Span | None) -> str:
        try:
            # Asked before opening, since opening a FIFO waits; only the user may name one (`<(…)`).
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or (named is None and stat.S_ISFIFO(mode))):
                raise _unreadable(path, "not a file", named)
            with open(path, "rb") as file:
                content = file.read()
            text = content.decode()
        except UnicodeDecodeError as error:
            raise _unreadable(path, f"byte {error.start + 1} is not UTF-8 text", named) from None
        except OSError as error:
            raise _unreadable(path, (error.strerror or "unreadable").lower(), named) from None
        except ValueError:
            raise _unreadable(path, "not a path", named) from None
        self._hashes[self._name(os.path.realpath(path))] = hashlib.sha256(content).digest()
        return text

    def _name(self, real: str) -> str:
        return os.path.relpath(real, self._main_folder)


def beside(word: ast.Word) -> str:
    """The path a word names: it starts at the folder of the file the word stands in.

    Raises PolicyError (UR110) for what can be no path that anybody meant.
    """
    if not word.text or not word.text.isprintable():
        raise flaw("UR110", f'"{printable(word.text)}" is not a path', word.span)
    return os.path.join(os.path.dirname(word.span.source.path), word.text)


def _unreadable(path: str, why: str, named: Span | None) -> PolicyError:
    message = f"cannot read {printable(path, 200)}: {why}"
    return PolicyError([diagnostic("UR401", message, *([] if named is None else [Label(named)]))])
