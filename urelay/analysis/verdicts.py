"""Decisions in the words of the language, as they stand behind an arrow."""

from __future__ import annotations

from urelay.policy.model import TO_PATHS, DenyHow, Outcome
from urelay.table.decision import Decision


def outcome_text(decision: Decision) -> str:
    """`direct`, `via wg`, `to unix "/run/x"`, `deny refused`: as after an arrow."""
    if decision.outcome is Outcome.VIA:
        return f"via {decision.upstream}"
    if decision.outcome in TO_PATHS:
        return f'to {decision.outcome} "{decision.template}"'
    if decision.outcome is Outcome.SILENT:
        return "deny silently"
    if decision.outcome is Outcome.DENY and decision.deny_how is not DenyHow.DEFAULT:
        return f"deny {decision.deny_how}"
    return decision.outcome.value
