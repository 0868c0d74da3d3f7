"""What `urelay check` has to say: one data model that every output format renders.

A diagnostic speaks in the writer's words about the writer's text: what is so, where, the
counterexample before the theory, and help one can paste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from urelay.lang.codes import CODES, Severity
from urelay.lang.source import Span

__all__ = ["Diagnostic", "Label", "Remark", "Severity", "diagnostic"]


@dataclass(frozen=True, slots=True)
class Label:
    """A stretch of source and what to say under it; the primary one is drawn with carets."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Remark:
    """A line under the source: `= help    remove one`; the heading is one word or two."""

    heading: str
    """`help`, `note`, `both`, `for example`, `exactly`, …"""
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. The first label is the primary one: its place is the finding's place."""

    code: str
    """`UR201`; its severity and its page stand in urelay.lang.codes."""
    message: str
    labels: tuple[Label, ...] = ()
    remarks: tuple[Remark, ...] = ()
    severity: Severity = Severity.ERROR


def diagnostic(code: str, message: str, *labels: Label, remarks: Sequence[Remark] = ()) -> Diagnostic:
    """A finding, with the severity its code has; the first label is the primary one."""
    return Diagnostic(code, message, labels, tuple(remarks), CODES[code].severity)
