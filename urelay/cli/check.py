"""`urelay check`: proves policies, and says what is wrong with them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from urelay.cli.output import count, use_colour

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from urelay.lang.diagnostics import Diagnostic
    from urelay.services.verdict import Verdict

SUMMARY = "check policies and prove their expectations"
DESCRIPTION = """\
Reads each policy with all it includes, checks it, finds conflicts, dead routes and pierced denies,
and proves every `expect` for all the connections it speaks of.

exit status: 0 fine, 1 findings, 2 could not run"""
EXAMPLE = """\
example:
  urelay check --strict rules/site.urr
  urelay explain UR220                    what a finding means"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="a policy; several are judged one by one")
    parser.add_argument("--strict", action="store_true", help="warnings fail the check too")
    parser.add_argument("--notes", action="store_true", help="show notes too")
    parser.add_argument(
        "--cover", action="store_true", help="note the routes that no expectation touches (implies --notes)"
    )
    parser.add_argument(
        "--format", choices=("text", "json", "github"), default="text", help="how to write findings"
    )


def run(arguments: argparse.Namespace) -> int:
    """Judge every file; the exit status is the worst one's."""
    from urelay.lang.diagnostics import Severity
    from urelay.lang.render import render_github, render_json, render_text
    from urelay.services.verdict import FINDINGS, judge

    worst = 0
    everything: list[dict[str, object]] = []
    for path in arguments.files:
        verdict = judge(path, cover=arguments.cover)
        shown = [
            one
            for one in verdict.diagnostics
            if one.severity is not Severity.NOTE or arguments.notes or arguments.cover
        ]
        worst = max(worst, verdict.status)
        if arguments.strict and any(one.severity is Severity.WARNING for one in shown):
            worst = max(worst, FINDINGS)
        if arguments.format == "json":
            everything += render_json(shown)
        elif arguments.format == "github":
            sys.stdout.write(render_github(shown))
        else:
            sys.stdout.write(render_text(shown, colour=use_colour(sys.stdout)))
            # Of a file that could not be read there is nothing to sum up.
            if verdict.policy is not None or any(one.labels for one in shown):
                sys.stdout.write(f"{path}: {_summary(verdict, shown)}\n")
    if arguments.format == "json":
        import json

        sys.stdout.write(json.dumps(everything, indent=2) + "\n")
    return worst


def _summary(verdict: Verdict, shown: Sequence[Diagnostic]) -> str:
    """`12 routes, 3 walls, 7 expectations proved, no findings`."""
    parts = []
    if verdict.policy is not None:
        policy = verdict.policy
        failed = any(one.code in ("UR301", "UR302") for one in verdict.diagnostics)
        parts += [
            count(sum(len(routes) for routes in policy.tables.values()), "route"),
            count(len(policy.walls), "wall"),
            count(len(policy.expectations), "expectation") + ("" if failed else " proved"),
        ]
    numbers = {
        kind: sum(one.severity.value == kind for one in shown) for kind in ("error", "warning", "note")
    }
    parts += [count(number, kind) for kind, number in numbers.items() if number] or ["no findings"]
    return ", ".join(parts)
