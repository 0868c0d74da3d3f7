"""`urelay explain`: what a policy does with a connection, and why; or what a finding means."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from urelay.errors import PolicyError, StartError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from urelay.table.evaluate import Table

SUMMARY = "say what happens to a connection and why, or what a finding means"
DESCRIPTION = """\
Asks a policy about one connection: the outcome, the route that decided, the ones that lost and why.
It is the relay's own evaluator that answers. Given the code of a finding, prints its page.

  CONNECTION   HOST:PORT [from ADDRESS] [on LISTENER] [table TABLE]

exit status: 0 answered, 1 the policy or a question has errors, 2 could not run"""
EXAMPLE = """\
example:
  urelay explain rules/site.urr 10.1.2.3:22 from 192.168.7.9 on lan
  urelay explain rules/site.urr --batch < connections.txt
  urelay explain UR220"""

_CODE = re.compile(r"UR[0-9]{3}", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("what", metavar="FILE", help="the policy, or the code of a finding (UR220)")
    parser.add_argument(
        "words", metavar="CONNECTION", nargs="*", help="the connection; quotes are not needed"
    )
    parser.add_argument("--json", action="store_true", help="answer with one JSON object")
    parser.add_argument(
        "--batch",
        action="store_true",
        help="read a connection a line from standard input, write a JSON object a line, in order",
    )


def run(arguments: argparse.Namespace) -> int:
    """Answer the question."""
    text = " ".join(arguments.words)
    if not text and not arguments.batch and _CODE.fullmatch(arguments.what):
        return _explain_code(arguments.what.upper())
    if arguments.batch == bool(text):
        raise StartError(
            "name a connection, such as 10.1.2.3:22, or pass --batch and one a line on standard input"
        )
    table = _table(arguments.what)
    if arguments.batch:
        return _explain_lines(table, sys.stdin)
    return _explain_one(table, text, as_json=arguments.json)


def _table(path: str) -> Table:
    """The table of a policy that has a meaning; what `check` proves beyond that is not asked here."""
    from urelay.lang.diagnostics import Severity
    from urelay.policy.check import check_file
    from urelay.table.compile import compile_policy

    checked = check_file(path)
    if checked.policy is None:
        raise PolicyError([one for one in checked.diagnostics if one.severity is Severity.ERROR])
    return compile_policy(checked.policy)


def _explain_code(code: str) -> int:
    from urelay.lang.codes import CODES

    known = CODES.get(code)
    if known is None:
        raise StartError(f"there is no finding called {code}")
    print(f"{code} ({known.severity.value}): {known.title}\n\n{known.page.strip()}")
    return 0


def _explain_one(table: Table, text: str, *, as_json: bool) -> int:
    from urelay.analysis.explain import explain, explain_region
    from urelay.policy.question import resolve_question

    question = resolve_question(text, table.policy)
    if question.connection is None:
        if as_json:
            raise StartError(f"`{text}` names more than one connection; --json is about one")
        print(explain_region(table, question))
        return 0
    explanation = explain(table, question.connection)
    if as_json:
        import json

        print(json.dumps({**explanation.json(), "connection": text}))
    else:
        print(explanation.text())
    return 0


def _explain_lines(table: Table, lines: Iterable[str]) -> int:
    """An object a line, in order; a line that is no connection gets one too, and costs the status."""
    import json

    from urelay.analysis.explain import answer
    from urelay.policy.question import resolve_question

    status = 0
    for line in lines:
        text = line.strip()
        try:
            connection = resolve_question(text, table.policy).connection
            if connection is None:
                entry: dict[str, object] = {
                    "connection": text,
                    "error": "this names more than one connection",
                }
            else:
                entry = answer(table, connection, text)
        except PolicyError as error:
            entry = {"connection": text, "error": error.diagnostics[0].message}
        status |= "error" in entry
        # At once: whoever writes a line and waits for its answer must get it.
        print(json.dumps(entry), flush=True)
    return status
