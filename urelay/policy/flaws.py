"""How a check says what is wrong: at most one error a statement, and never the same thing twice.

A reader that cannot go on raises a PolicyError of one diagnostic, made by `flaw`. Whoever loops over
statements catches it, keeps the diagnostic and goes on with the next statement. A reader that stops
because of something already reported (a route over a broken set) raises `reported()`, which carries
nothing: so one mistake is told once, where it was made. Warnings do not stop anybody; they are added
to a Findings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.diagnostics import Diagnostic, Label, Remark, Severity, diagnostic
from urelay.lang.source import Source, Span
from urelay.net.address import printable
from urelay.policy.words import WordError

T = TypeVar("T")


class Findings:
    """Every diagnostic found so far, in the order found."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def add(self, code: str, message: str, span: Span, *, note: str | None = None) -> None:
        """Keep a finding that stops nobody."""
        self.keep(flaw(code, message, span, note=note))

    def keep(self, error: PolicyError) -> None:
        """Keep what a flaw says without ending the statement."""
        self.found.extend(error.diagnostics)

    @contextmanager
    def one_statement(self) -> Iterator[None]:
        """Keep the flaw that ends the body of this `with`, if one does."""
        try:
            yield
        except PolicyError as error:
            self.keep(error)

    @property
    def failed(self) -> bool:
        """Whether an error is among them."""
        return any(found.severity is Severity.ERROR for found in self.found)


class Doubts:
    """Which unknown names may be defined after all, in a statement or a file that could not be read.

    A use of such a name is not an error of its own. A definition that is broken beyond parsing still
    shows its keyword and its name at the start of a line.
    """

    _DEFINES = re.compile(r"^[ \t]*(set|upstream|listen|dns|table)[ \t]+([^\s={}]+)", re.MULTILINE)

    def __init__(self, texts: Iterable[str], *, everything: bool) -> None:
        self._everything = everything
        self._names = {match.groups() for text in texts for match in self._DEFINES.finditer(text)}

    def cover(self, keyword: str, name: str) -> bool:
        """Whether `keyword name` may be defined where nobody could read it."""
        return self._everything or (keyword, name) in self._names


def flaw(
    code: str, message: str, span: Span, help_text: str | None = None, *others: Label, note: str | None = None
) -> PolicyError:
    """The exception for an error at `span`; `others` are more places to draw, with their words."""
    remarks = [Remark(kind, text) for kind, text in (("note", note), ("help", help_text)) if text is not None]
    return PolicyError([diagnostic(code, message, Label(span), *others, remarks=tuple(remarks))])


def password(span: Span) -> PolicyError:
    """UR114. The span points into a copy of the source in which what stands there is made of stars, so
    that no terminal, log or report that draws the line shows it.
    """
    source, stars = span.source, re.sub(r"[^\n]", "*", span.text)
    text = source.text[: span.start] + stars + source.text[span.end :]
    hidden = Span(Source(source.path, text, source.line_starts), span.start, span.end)
    return flaw("UR114", 'a password in the policy; use `login env NAME` or `login file "…"`', hidden)


def reported() -> PolicyError:
    """The exception for a statement that stands on something broken, which has been said already."""
    return PolicyError([])


def read_word(word: ast.Word, reader: Callable[[str], T]) -> T:
    """What `reader` (of urelay.policy.words) makes of a word of a statement."""
    try:
        return reader(word.text)
    except WordError as error:
        raise flaw(error.code, error.message, word.span, error.help_text) from None


def unknown(what: str, name: str, span: Span, known: Iterable[str], hint: str = "") -> PolicyError:
    """UR101: `there is no upstream called "crop"; did you mean "corp"?`, else `hint`."""
    guess = closest(name, known)
    ending = f'; did you mean "{guess}"?' if guess is not None else hint
    return flaw("UR101", f'there is no {what} called "{printable(name)}"{ending}', span)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None
