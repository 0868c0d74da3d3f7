"""One generation of the relay: everything that follows from reading a policy file once.

It is made whole before anything of it is used. So a start that fails has opened nothing, and a
reload that fails has touched nothing of what runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urelay.errors import PolicyError, StartError
from urelay.services.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from urelay.engine.logins import Logins
    from urelay.engine.tls import Tls
    from urelay.lang.diagnostics import Diagnostic
    from urelay.policy.model import Policy
    from urelay.protocols.users import Users
    from urelay.table.evaluate import Table


@dataclass(frozen=True, slots=True)
class Generation:
    """A policy that can be served, with the secrets it asks for."""

    policy: Policy
    table: Table
    warnings: tuple[Diagnostic, ...]
    logins: Logins
    tls: Mapping[str, Tls]
    """How upstreams speak TLS, by name; nothing of the others"""
    users: Mapping[str, Users]
    """Who may log in, by the name of the listener; the others need no login"""

    @property
    def title(self) -> str:
        """`rules/site.urr (policy 1a2b3c4d, 12 routes)`."""
        policy = self.policy
        routes = sum(len(table) for table in policy.tables.values())
        return f"{policy.path} (policy {policy.digest[:8]}, {routes} route{'s' if routes != 1 else ''})"


def prepare(path: str, environ: Mapping[str, str] = os.environ) -> Generation:
    """Judge the policy in a file and read the logins and users it names.

    Raises PolicyError when it has errors or asks for what this relay cannot do yet, and StartError
    with everything outside the policy that is missing.
    """
    from urelay.engine.logins import read_logins
    from urelay.lang.diagnostics import Severity
    from urelay.policy import unserved
    from urelay.services.departures import check_departures
    from urelay.services.users import read_users

    verdict = judge(path)
    table = verdict.proved()
    policy = table.policy
    beyond_us = unserved.find(policy)
    if beyond_us:
        raise PolicyError(beyond_us)
    problems: list[str] = []
    logins: Logins = {}
    try:
        logins = read_logins(policy, environ)
    except StartError as error:
        problems += error.problems
    tls: Mapping[str, Tls] = {}
    if any(upstream.tls for upstream in policy.upstreams.values()):
        from urelay.engine.tls import read_trust

        try:
            tls = read_trust(policy)
        except StartError as error:
            problems += error.problems
    try:
        check_departures(policy)
    except StartError as error:
        problems += error.problems
    users = {}
    for listener in policy.listeners.values():
        if listener.users_file is not None:
            try:
                users[listener.name] = read_users(listener.users_file)
            except StartError as error:
                problems += [
                    f"{listener.origin}: listener `{listener.name}`: {one}" for one in error.problems
                ]
    if problems:
        raise StartError(*problems)
    warnings = tuple(one for one in verdict.diagnostics if one.severity is Severity.WARNING)
    return Generation(policy, table, warnings, logins, tls, users)
