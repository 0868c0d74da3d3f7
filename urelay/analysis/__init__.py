"""Questions about a whole table, answered exactly: nothing is sampled, no solver is asked.

`check` finds what is wrong with a policy that compiles (UR201 to UR303); `urelay.analysis.explain`
says why one connection is decided as it is.
"""

from __future__ import annotations

from urelay.analysis.cells import Cells
from urelay.analysis.conflicts import find_ties
from urelay.analysis.crossings import find_crossings
from urelay.analysis.detours import find_detours, find_loops, find_returns
from urelay.analysis.expectations import find_untouched, prove
from urelay.analysis.reachability import find_closed, find_unreachable
from urelay.analysis.ways_in import find_free_sources, find_lost_pools, find_unresolved
from urelay.lang.diagnostics import Diagnostic
from urelay.lang.source import Origin
from urelay.table.evaluate import Table


def check(table: Table, *, cover: bool = False) -> list[Diagnostic]:
    """Every finding about what a table does; `cover` adds the routes no expectation touches (UR303).

    Severities are those of urelay.lang.codes; `# allow` comments are not applied yet.
    """
    cells = Cells(table)
    ties = find_ties(table.policy)
    # What a tie says of a route need not be said again as "can never win".
    spoken = {label.span for finding in ties for label in finding.labels}
    told = {
        id(route)
        for routes in table.policy.tables.values()
        for route in routes
        if spoken & {route.node.span, route.node.region.span}
    }
    touched: set[Origin] = set()
    return [
        *ties,
        *find_unreachable(cells, told),
        *find_crossings(cells),
        *find_unresolved(table),
        *find_free_sources(table.policy),
        *find_closed(cells),
        *find_returns(cells),
        *find_loops(cells),
        *find_detours(cells),
        *find_lost_pools(table.policy),
        *prove(cells, touched if cover else None),
        *(find_untouched(table.policy, touched) if cover else ()),
    ]
