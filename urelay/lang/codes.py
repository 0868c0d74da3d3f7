"""Every finding there is: its code, its weight and its title.

The pages that `urelay explain UR220` prints stand in `grammar/diagnostics.md`, one section a code,
where they can be read without the program too. UR0xx is about shape, UR1xx about sense, UR2xx about
what a policy decides, UR3xx about proofs, UR4xx about the machine at hand.
"""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass

from urelay.resources import resource_dir

_HEADING = re.compile(r"^## (UR\d{3}): .*$", re.MULTILINE)


class Severity(enum.Enum):
    """How much a finding weighs: errors always fail a check, warnings with `--strict`."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding."""

    code: str
    severity: Severity
    title: str
    """A short phrase, such as stands in a list of all codes"""
    fixable: bool = False
    """Whether the finding itself determines how the text should be changed"""

    @property
    def page(self) -> str:
        """A few sentences and an example, as Markdown, without the heading."""
        return _pages()[self.code]


@functools.cache
def _pages() -> dict[str, str]:
    text = (resource_dir("grammar") / "diagnostics.md").read_text(encoding="utf-8")
    _preface, *parts = _HEADING.split(text)
    return {code: page.strip() + "\n" for code, page in zip(parts[::2], parts[1::2], strict=True)}


def _error(code: str, title: str, *, fixable: bool = False) -> Code:
    return Code(code, Severity.ERROR, title, fixable)


def _warning(code: str, title: str, *, fixable: bool = False) -> Code:
    return Code(code, Severity.WARNING, title, fixable)


def _note(code: str, title: str, *, fixable: bool = False) -> Code:
    return Code(code, Severity.NOTE, title, fixable)


CODES: dict[str, Code] = {
    entry.code: entry
    for entry in (
        _error("UR001", "a word that does not fit where it stands"),
        _error("UR002", "no arrow, no `then` or no `=`", fixable=True),
        _error("UR003", "a brace or a string without its other end"),
        _error("UR004", "a word of the language used as a name"),
        _warning("UR005", "an `allow` comment that silences nothing or gives no reason", fixable=True),
        _error("UR101", "a name that nothing defines"),
        _error("UR102", "a name defined twice"),
        _error("UR103", "a set of the wrong kind"),
        _error("UR104", "a prefix with host bits set", fixable=True),
        _error("UR105", "a word that is not an address or a host name"),
        _error("UR106", "a port or a range of ports that cannot be", fixable=True),
        _error("UR107", "a definition that leads back to itself"),
        _error("UR108", "a set where exactly one prefix is needed"),
        _error("UR109", "an option that does not exist here"),
        _error("UR110", "a value that an option cannot have"),
        _error("UR111", "a rewrite whose two sides do not fit"),
        _error("UR112", "a NAT64 prefix that RFC 6052 does not allow"),
        _warning("UR113", "the well-known NAT64 prefix carrying private addresses"),
        _error("UR114", "a password in the policy"),
        _error("UR115", "an unknown field in a path"),
        _warning("UR116", "a definition that nothing uses"),
        _warning("UR117", "an empty set"),
        _error("UR118", "a host name of one label without quotes", fixable=True),
        _error("UR119", "a listener open to everyone"),
        _error("UR201", "two routes claim the same connections"),
        _warning("UR202", "a route said twice", fixable=True),
        _error("UR203", "port ranges that overlap and neither is narrower"),
        _warning("UR210", "a route that can never win", fixable=True),
        _note("UR211", "a route that changes nothing", fixable=True),
        _warning("UR220", "a deny that does not hold"),
        _warning("UR221", "names that pass by the denied addresses"),
        _warning("UR222", "`from` where clients choose their own source"),
        _note("UR223", "a table without `match any`"),
        _warning("UR224", "a route back to our own listener"),
        _error("UR225", "a lookup that goes round in circles"),
        _warning("UR226", "a rewrite that reaches what is denied"),
        _warning("UR227", "fake addresses that nobody listens for"),
        _warning("UR228", "a NAT64 prefix that other translators may refuse"),
        _error("UR301", "an expectation that fails"),
        _error("UR302", "an expectation about nothing"),
        _note("UR303", "a route that no expectation touches"),
        _error("UR401", "a file that cannot be read"),
        _error("UR402", "an environment variable that is not set"),
        _error("UR403", "a network namespace that is missing"),
        _error("UR404", "a place that cannot be bound"),
        _error("UR405", "something that this release checks and cannot serve yet"),
    )
}
"""All codes, in order."""
