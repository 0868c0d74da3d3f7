"""`# allow UR220: lab network`: a finding that somebody has looked at and means to keep.

A comment silences warnings and notes of the statement it stands at, never errors: a policy with an
error has no meaning to accept. What it does not silence, or does not explain, is a finding itself, so
that comments do not outlive what they were for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from urelay.lang import ast
from urelay.lang.codes import CODES
from urelay.lang.diagnostics import Diagnostic, Label, Remark, Severity, diagnostic
from urelay.lang.source import Span
from urelay.net.address import printable


def apply(diagnostics: Iterable[Diagnostic], documents: Iterable[ast.Document]) -> list[Diagnostic]:
    """The diagnostics that no comment silences, and UR005 for comments that are of no use.

    Call it last, with everything found. While there are errors, later analyses have not run; a
    comment may be meant for what they would have found, so it is then not called useless.
    """
    allowances = {document.source.path: _Allowances(document) for document in documents}
    kept: list[Diagnostic] = []
    for found in diagnostics:
        place = found.labels[0].span if found.labels else None
        here = allowances.get(place.source.path) if place is not None else None
        if here is None or place is None or not here.silence(found, place):
            kept.append(found)
    failed = any(found.severity is Severity.ERROR for found in kept)
    for allowance in allowances.values():
        kept.extend(allowance.useless(failed=failed))
    return kept


class _Allowances:
    """The comments of one file and what they have silenced."""

    def __init__(self, document: ast.Document) -> None:
        self._allows = document.allows
        self._spans = _statement_spans(document.statements)
        self._starts = [span.start for span in self._spans]
        self._used: set[tuple[int, str]] = set()

    def silence(self, found: Diagnostic, place: Span) -> bool:
        """Whether a comment at the finding's own line or at its statement's first line names it."""
        if found.severity is Severity.ERROR or not self._allows:
            return False
        lines = {place.line, *self._statement_line(place)}
        silenced = False
        for number, allow in enumerate(self._allows):
            if found.code in allow.codes and lines.intersection(allow.lines):
                self._used.add((number, found.code))
                silenced = True
        return silenced

    def useless(self, *, failed: bool) -> Iterator[Diagnostic]:
        """UR005 for every comment that gives no reason, and every code that silenced nothing."""
        for number, allow in enumerate(self._allows):
            if not allow.reason:
                codes = ", ".join(allow.codes)
                example = Remark("help", f"# allow {codes}: why it is meant")
                yield diagnostic(
                    "UR005",
                    f"`allow {printable(codes)}` gives no reason",
                    Label(allow.span),
                    remarks=(example,),
                )
            for code in allow.codes:
                if (number, code) not in self._used and not _may_come_later(code, failed=failed):
                    message = f"`allow {printable(code)}` silences nothing"
                    yield diagnostic("UR005", message, Label(allow.span))

    def _statement_line(self, place: Span) -> Iterator[int]:
        at = bisect_right(self._starts, place.start) - 1
        if at >= 0 and place.start < self._spans[at].end:
            yield self._spans[at].line


def _may_come_later(code: str, *, failed: bool) -> bool:
    """Whether an analysis that has not run might still find `code`. Notes are made on request only."""
    known = CODES.get(code)
    if known is None or known.severity is Severity.ERROR:
        return False
    return failed or known.severity is Severity.NOTE


def _statement_spans(statements: Sequence[ast.Statement]) -> list[Span]:
    """Where each statement stands, in order; those of a table beside the table's own first line."""
    spans: list[Span] = []
    for node in statements:
        if isinstance(node, ast.TableDef):
            spans.append(node.name.span)
            spans.extend(inner.span for inner in node.body)
        else:
            spans.append(node.span)
    return spans
