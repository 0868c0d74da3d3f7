"""What `urelay check` finds in a policy: the whole way from a file to a table and its findings.

The one place where the parts are strung together, so that `check`, `serve`, a reload, `explain` and
`urelay.load` cannot judge the same file differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urelay.errors import PolicyError
from urelay.lang.diagnostics import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from urelay.lang.diagnostics import Diagnostic
    from urelay.policy.model import Policy
    from urelay.table.evaluate import Table

FINE, FINDINGS, COULD_NOT_RUN = 0, 1, 2
"""The exit statuses of `check`; the other commands use the same numbers."""

# What lies outside the policy, or is beyond this relay: a file, a variable, a namespace, a port.
_OUTSIDE = "UR4"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A file, judged. With an error there may be a table or not; without one there always is."""

    path: str
    policy: Policy | None
    table: Table | None
    diagnostics: tuple[Diagnostic, ...]

    @property
    def status(self) -> int:
        """The exit status these findings ask for; warnings and notes alone are fine."""
        return status(self.diagnostics)

    def proved(self) -> Table:
        """The table, if nothing speaks against using it; raises PolicyError with what does."""
        errors = [one for one in self.diagnostics if one.severity is Severity.ERROR]
        if errors or self.table is None:
            raise PolicyError(errors)
        return self.table


def judge(path: str, *, cover: bool = False) -> Verdict:
    """Read, check, compile, analyse and prove the policy in a file; never raises for what is in it.

    `cover` also notes the routes that no expectation touches (UR303).
    """
    from urelay import analysis
    from urelay.policy import allow, check
    from urelay.table.compile import compile_policy

    checked = check.check_file(path)
    found = list(checked.diagnostics)
    table = None
    if checked.policy is not None:
        table = compile_policy(checked.policy)
        found += analysis.check(table, cover=cover)
    return Verdict(path, checked.policy, table, tuple(allow.apply(found, checked.documents)))


def status(diagnostics: Iterable[Diagnostic]) -> int:
    """2 when something outside the policy is missing, 1 when the policy has errors, else 0."""
    errors = [one for one in diagnostics if one.severity is Severity.ERROR]
    if any(one.code.startswith(_OUTSIDE) for one in errors):
        return COULD_NOT_RUN
    return FINDINGS if errors else FINE
